package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/buildcache"
	"wrenn.dev/internal/plain"
)

const (
	maxCommand = 1 << 10  // of a command that an error quotes, in bytes
	maxAnswer  = 64 << 10 // of what a script of ours prints
)

// stepWorker runs one step in a guest.
type stepWorker struct {
	guest *envdclient.Client
	step  plannedStep
	team  string
	files *buildcache.Cache
	out   *output
}

func (w *stepWorker) run(ctx context.Context) error {
	switch w.step.Kind {
	case wrenn.StepRun:
		return w.runCommand(ctx)
	case wrenn.StepCopy:
		return w.copyFiles(ctx)
	case wrenn.StepWorkdir:
		return w.makeWorkdir(ctx)
	case wrenn.StepUser:
		return w.makeUser(ctx)
	}
	return nil
}

// runCommand runs a RUN step. Clients compare the text of its errors.
func (w *stepWorker) runCommand(ctx context.Context) error {
	before := w.step.before
	user := before.User
	if named := w.step.Arg(1); named != "" {
		expanded, err := before.expand(named)
		if err != nil {
			return err
		}
		user = expanded
	}
	user, err := userOf(ctx, w.guest, user)
	if err != nil {
		return err
	}
	shell := w.step.Shell
	if len(shell) == 0 {
		if shell, err = loginShell(ctx, w.guest); err != nil {
			return err
		}
	}
	command := w.step.Args[0]
	exit, err := w.follow(ctx, wrenn.ExecCommand{
		Cmd: shell[0], Args: append(shell[1:len(shell):len(shell)], command), Env: before.variables(), User: user, Cwd: before.Workdir,
	}, nil)
	quoted := plain.Shorten(command, maxCommand)
	switch {
	case err != nil && strings.Contains(err.Error(), "invalid username: '"+user+"'"): // the guest's agent refuses it
		return wrenn.Errorf(wrenn.GuestFailed, "failed to run command '%s': command failed: unauthenticated: invalid username: '%s'", quoted, user)
	case err != nil:
		return fmt.Errorf("failed to run command '%s': %w", quoted, err)
	case exit.Code != 0:
		return wrenn.Errorf(wrenn.GuestFailed, "failed to run command '%s': %s", quoted, exit.Status)
	}
	return nil
}

// loginShell returns the program and the arguments before a command of a login shell.
func loginShell(ctx context.Context, guest *envdclient.Client) ([]string, error) {
	res, err := guest.ExecUpTo(ctx, wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", "test -x /bin/bash"}, User: "root"}, maxTail)
	if err != nil {
		return nil, fmt.Errorf("find a shell: %w", err)
	}
	if res.ExitCode != 0 {
		return []string{"/bin/sh", "-l", "-c"}, nil
	}
	return []string{"/bin/bash", "-l", "-c"}, nil
}

// follow runs a command, feeds it its input if there is one, and logs its output.
func (w *stepWorker) follow(ctx context.Context, cmd wrenn.ExecCommand, input io.Reader) (wrenn.ExecExit, error) {
	start := wrenn.ExecStart{ExecCommand: cmd, WantStdin: input != nil}
	proc, err := w.guest.Start(ctx, start)
	if err != nil {
		return wrenn.ExecExit{}, err
	}
	defer proc.Close()
	if input != nil {
		feeding, stop := context.WithCancel(ctx)
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			feed(feeding, proc, input)
		}()
		defer func() { stop(); <-fed }()
	}
	stdout, stderr := w.out.writer(), w.out.writer()
	defer stdout.end()
	defer stderr.end()
	for {
		ev, err := proc.Next()
		if errors.Is(err, io.EOF) {
			return proc.Exit(), nil
		}
		if err != nil {
			return wrenn.ExecExit{}, err
		}
		_, _ = stdout.Write(ev.Stdout) // it never fails
		_, _ = stderr.Write(ev.Stderr)
	}
}

// feed sends input to the process until its end. A process that does not read it
// has failed, and says why.
func feed(ctx context.Context, proc *envdclient.Process, input io.Reader) {
	if proc.SendFrom(ctx, input) == nil || ctx.Err() == nil {
		_ = proc.CloseInput(ctx) // it may have ended
	}
}

// asRoot runs a script with arguments and returns what it prints. A failure has its
// errors.
func (w *stepWorker) asRoot(ctx context.Context, script string, args ...string) (string, error) {
	res, err := w.guest.ExecUpTo(ctx, wrenn.ExecCommand{
		Cmd: "/bin/sh", Args: append([]string{"-c", script, "sh"}, args...), User: "root", Cwd: "/",
	}, maxAnswer)
	if err != nil {
		return "", err
	}
	if res.ExitCode != 0 {
		text := plain.Shorten(plain.Line(strings.TrimSpace(string(res.Stderr))), maxTail)
		return "", wrenn.Errorf(wrenn.GuestFailed, "%s: %s", res.Status, text)
	}
	return string(res.Stdout), nil
}

// makeDirectory makes a directory $1 with its parents, which get the owner $2:$3.
const makeDirectory = `
set -e
new=; at=$1
while [ ! -d "$at" ]; do new=$at; at=$(dirname "$at"); done
mkdir -p "$1"
if [ -n "$new" ]; then chown -R "$2:$3" "$new"; fi
`

// findOwner sets uid and gid to those of the user $1 and the group $2, by name or
// number. Without a group it is the user's.
const findOwner = `
set -e
field() { while IFS=: read -r n _ a b _; do if [ "$n" = "$2" ]; then eval "echo \$$3"; return; fi; done < "$1"; }
case $1 in *[!0-9]*) uid=$(field /etc/passwd "$1" a) ;; *) uid=$1 ;; esac
[ -n "$uid" ] || { echo "there is no user $1" >&2; exit 1; }
case $2 in
'') case $1 in *[!0-9]*) gid=$(field /etc/passwd "$1" b) ;; *) gid=$1 ;; esac ;;
*[!0-9]*) gid=$(field /etc/group "$2" a) ;;
*) gid=$2 ;;
esac
[ -n "$gid" ] || { echo "there is no group $2" >&2; exit 1; }
echo "$uid $gid"
`

// owner returns the numbers of a user or user:group in the guest.
func (w *stepWorker) owner(ctx context.Context, account string) (uid, gid int, err error) {
	user, group, _ := strings.Cut(account, ":")
	text, err := w.asRoot(ctx, findOwner, user, group)
	if err != nil {
		return 0, 0, fmt.Errorf("owner %s: %w", account, err)
	}
	first, second, _ := strings.Cut(strings.TrimSpace(text), " ")
	uid, err = strconv.Atoi(first)
	gid, err2 := strconv.Atoi(second)
	const most = 1 << 31
	if errors.Join(err, err2) != nil || uid < 0 || gid < 0 || uid >= most || gid >= most {
		return 0, 0, wrenn.Errorf(wrenn.GuestFailed, "owner %s: the guest has no numbers for it", account)
	}
	return uid, gid, nil
}

// userOr returns the user of the step, root if none was set.
func (w *stepWorker) userOr() string {
	if w.step.before.User == "" {
		return "root"
	}
	return w.step.before.User
}

func (w *stepWorker) makeWorkdir(ctx context.Context) error {
	uid, gid, err := w.owner(ctx, w.userOr())
	if err != nil {
		return err
	}
	if _, err := w.asRoot(ctx, makeDirectory, w.step.after.Workdir, strconv.Itoa(uid), strconv.Itoa(gid)); err != nil {
		return fmt.Errorf("make directory %s: %w", w.step.after.Workdir, err)
	}
	return nil
}

// addUser adds the user $1 unless it exists.
const addUser = `
set -e
while IFS=: read -r name _ id _; do
	if [ "$name" = "$1" ] || [ "$id" = "$1" ]; then exit 0; fi
done < /etc/passwd
case $1 in *[!0-9]*) ;; *) echo "there is no user with the number $1" >&2; exit 1 ;; esac
shell=/bin/sh
if [ -x /bin/bash ]; then shell=/bin/bash; fi
if command -v useradd >/dev/null; then exec useradd -m -s "$shell" "$1"; fi
exec adduser -D -s "$shell" "$1"
`

func (w *stepWorker) makeUser(ctx context.Context) error {
	user, _, _ := strings.Cut(w.step.after.User, ":")
	if _, err := w.asRoot(ctx, addUser, user); err != nil {
		return fmt.Errorf("user %s: %w", user, err)
	}
	return nil
}

// findPlace prints whether $1 is a directory, or is to be one because $2 is dir, and
// then the directory that it is or is in, without symbolic links. Directories that it
// makes get the owner $3:$4.
const findPlace = `
set -e
kind=file; dir=$(dirname "$1")
if [ "$2" = dir ] || [ -d "$1" ]; then kind=dir; dir=$1; fi
new=; at=$dir
while [ ! -d "$at" ]; do new=$at; at=$(dirname "$at"); done
mkdir -p "$dir"
if [ -n "$new" ]; then chown -R "$3:$4" "$new"; fi
echo "$kind"
cd "$dir"
pwd -P
`

// unpack unpacks the archive that it reads at the root. GNU tar would replace a
// symbolic link by a directory of the same name.
const unpack = `
if tar --version 2>/dev/null | grep -q GNU; then exec tar -x -p --keep-directory-symlink -f - -C /; fi
exec tar -x -p -f - -C /
`

// copyFiles unpacks the files of a COPY step in the guest.
func (w *stepWorker) copyFiles(ctx context.Context) error {
	archive := w.files.Get(w.team, w.step.Files)
	if archive == nil {
		return wrenn.Errorf(wrenn.NotFound, "the files of %.200q are not on the host that builds: upload them again", w.step.Args[0])
	}
	defer archive.Release()
	at, err := w.placement(ctx)
	if err != nil {
		return err
	}
	f, err := os.Open(archive.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	placed, write := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		err := at.place(f, write)
		_ = write.CloseWithError(err) // never fails
		failed <- err
	}()
	exit, err := w.follow(ctx, wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", unpack}, User: "root", Cwd: "/"}, placed)
	_ = placed.Close() // never fails; place ends if tar has not read all of it
	if bad := <-failed; bad != nil && !errors.Is(bad, io.ErrClosedPipe) {
		return bad
	}
	switch {
	case err != nil:
		return fmt.Errorf("unpack files: %w", err)
	case exit.Code != 0:
		return wrenn.Errorf(wrenn.GuestFailed, "the files cannot be unpacked: tar in the guest: %s", exit.Status)
	}
	return nil
}

// placement finds out where the files go.
func (w *stepWorker) placement(ctx context.Context) (placement, error) {
	before := w.step.before
	at := placement{source: w.step.Args[0], mode: -1}
	if mode := w.step.Arg(3); mode != "" {
		at.mode, _ = strconv.ParseInt(mode, 8, 32) // it was checked
	}
	account, err := before.expand(w.step.Arg(2))
	if err == nil && account == "" {
		account = w.userOr()
	}
	if err == nil {
		err = wrenn.CheckAccount(account)
	}
	if err != nil {
		return at, err
	}
	if at.uid, at.gid, err = w.owner(ctx, account); err != nil {
		return at, err
	}
	written, err := before.expand(w.step.Args[1])
	if err != nil {
		return at, err
	}
	if at.dest, err = before.path(w.step.Args[1]); err != nil {
		return at, err
	}
	want := ""
	if base := path.Base("/" + written); strings.HasSuffix(written, "/") || base == "." || base == ".." {
		want = "dir"
	}
	return w.resolve(ctx, at, want)
}

// resolve replaces the destination by where it is in the guest. What the guest
// answers is used for nothing but files of that guest.
func (w *stepWorker) resolve(ctx context.Context, at placement, want string) (placement, error) {
	text, err := w.asRoot(ctx, findPlace, at.dest, want, strconv.Itoa(at.uid), strconv.Itoa(at.gid))
	if err != nil {
		return at, fmt.Errorf("destination %s: %w", at.dest, err)
	}
	kind, dir, _ := strings.Cut(strings.TrimSuffix(text, "\n"), "\n")
	if !path.IsAbs(dir) || len(dir) > maxNameBytes || strings.Contains(dir, "\n") {
		return at, wrenn.Errorf(wrenn.GuestFailed, "the destination %s is no directory that can be used", at.dest)
	}
	if at.destDir = kind == "dir"; at.destDir {
		at.dest = path.Clean(dir)
	} else {
		at.dest = path.Join(dir, path.Base(at.dest))
	}
	return at, nil
}
