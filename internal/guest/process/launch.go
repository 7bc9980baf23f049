package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/settings"
	pb "wrenn.dev/proto/gen/envd/process"
)

// defaultPath serves an agent that was started without PATH; it is the one of
// Debian's /etc/profile for root.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// launch is a request to start a program, resolved.
type launch struct {
	user *account.User
	path string // of the program
	argv []string
	env  []string
	dir  string
}

// resolve turns the request of a user into what to launch under the settings.
// Errors are Connect errors with the codes of the protocol.
func resolve(req *pb.ProcessConfig, user *account.User, set settings.Values) (*launch, error) {
	if req.GetCmd() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no command given"))
	}
	env := environment(user, set.Env, req.GetEnvs())
	if err := checkStrings(req, env); err != nil {
		return nil, err
	}
	dir, err := workdir(req, user, set.Workdir)
	if err != nil {
		return nil, err
	}
	path, err := lookCommand(req.GetCmd(), env["PATH"], dir)
	if err != nil {
		return nil, err
	}
	l := &launch{user: user, path: path, argv: append([]string{req.GetCmd()}, req.GetArgs()...), dir: dir}
	for k, v := range env {
		l.env = append(l.env, k+"="+v)
	}
	return l, nil
}

// environment returns the variables of the user's account, the sandbox's and the request's; the later win.
func environment(user *account.User, sandbox, request map[string]string) map[string]string {
	env := map[string]string{
		"PATH":    defaultPath,
		"HOME":    user.Home,
		"USER":    user.Name,
		"LOGNAME": user.Name,
	}
	for _, name := range []string{"PATH", "LANG"} { // which the guest's init has set
		if value := os.Getenv(name); value != "" {
			env[name] = value
		}
	}
	if dir := user.RuntimeDir(account.RuntimeRoot); dir != "" {
		env["XDG_RUNTIME_DIR"] = dir
	}
	for _, layer := range []map[string]string{sandbox, request} {
		maps.Copy(env, layer)
	}
	return env
}

// checkStrings refuses strings that execve(2) cannot pass or would change silently.
func checkStrings(req *pb.ProcessConfig, env map[string]string) error {
	for _, s := range append([]string{req.GetCmd(), req.GetCwd()}, req.GetArgs()...) {
		if strings.ContainsRune(s, 0) {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("a NUL byte in the command, its arguments or cwd"))
		}
	}
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("environment variable %.64q: a name is not empty and has no '=', neither part has a NUL byte", k))
		}
	}
	return nil
}

// workdir returns the directory that a request names, else the sandbox's default,
// else the user's home, else / for users whose home does not exist.
func workdir(req *pb.ProcessConfig, user *account.User, fallback string) (string, error) {
	given := req.GetCwd()
	if given == "" {
		given = fallback
	}
	dir := user.Resolve(given, "")
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return dir, nil
	case err == nil:
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' is not a directory", dir))
	case given == "" && errors.Is(err, fs.ErrNotExist):
		return "/", nil
	case errors.Is(err, fs.ErrPermission): // only when the agent is not root
		return "", connect.NewError(connect.CodePermissionDenied, fmt.Errorf("cwd '%s': permission denied", dir))
	default:
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' does not exist", dir))
	}
}

// lookCommand finds a program as execvp(3) does with that PATH in that directory.
func lookCommand(cmd, searchPath, dir string) (string, error) {
	if strings.Contains(cmd, "/") {
		return cmd, nil // execve(2) knows better what is wrong with it
	}
	for _, entry := range filepath.SplitList(searchPath) {
		if !filepath.IsAbs(entry) {
			entry = filepath.Join(dir, entry) // an empty entry is the current directory
		}
		path := filepath.Join(entry, cmd)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", notFound(cmd)
}

func notFound(cmd string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("command '%s' not found", cmd))
}

// launchError turns an errno of fork, chdir or execve into the RPC error for the caller.
func launchError(l *launch, err error) error {
	cmd := l.argv[0]
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("command '%s': the sandbox's processes are frozen, and its timeout elapsed before they were thawed", cmd))
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, syscall.ENOENT):
		path := cmd
		if !filepath.IsAbs(path) {
			path = filepath.Join(l.dir, path)
		}
		if _, statErr := os.Stat(path); statErr == nil {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("command '%s': the interpreter that it names does not exist", cmd))
		}
		return notFound(cmd)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("user '%s' may not run '%s' in '%s'", l.user.Name, cmd, l.dir))
	case errors.Is(err, syscall.ENOTDIR):
		return notFound(cmd)
	case errors.Is(err, syscall.ENOEXEC):
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("command '%s' is not a program for this machine", cmd))
	case errors.Is(err, syscall.E2BIG), errors.Is(err, syscall.ENAMETOOLONG):
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("command '%s': its arguments and environment are too long", cmd))
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("command '%s': the sandbox is out of processes, memory or files: %w", cmd, err))
	default:
		return connect.NewError(connect.CodeInternal, fmt.Errorf("command '%s': %w", cmd, err))
	}
}
