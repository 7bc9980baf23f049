package launch

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// ProgramRoot returns a root with a program, its libraries, /dev/null and a /proc, and
// the given files and directories of the host, as far as they exist. The first path in
// its ReadOnly is the program's, without links.
func ProgramRoot(program string, places ...string) (*Root, error) {
	program, err := filepath.EvalSymlinks(program)
	if err != nil {
		return nil, err
	}
	r := &Root{ReadOnly: []string{program}, Devices: []string{os.DevNull}, Links: map[string]string{}, Proc: true}
	// Where libraries and modules are: loaders look in these directories, and in the
	// others that this file lists.
	prefix := filepath.Dir(filepath.Dir(program))
	libraries := []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", filepath.Join(prefix, "lib"), filepath.Join(prefix, "lib64")}
	for _, place := range append(libraries, places...) {
		if err := r.add(filepath.Clean(place)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// add makes a path of the host visible in a root: as the link that the host has, or
// with its content. It does nothing for one that does not exist or is visible.
func (r *Root) add(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, have := range r.ReadOnly {
		if path == have || strings.HasPrefix(path, have+"/") {
			return nil
		}
	}
	if info.Mode().Type() != os.ModeSymlink {
		r.ReadOnly = append(r.ReadOnly, path)
		return nil
	}
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	r.Links[path] = target
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(path), target)
	}
	return r.add(target)
}

// Run starts a command and returns when it has ended: with how, and the last
// ConsoleSize bytes of its standard output and of its standard error. It kills the
// command when ctx ends, and returns ctx's cause.
func Run(ctx context.Context, cmd Command) (exit Exit, stdout, stderr []byte, err error) {
	cmd.largeLog = true
	p, err := Start(cmd)
	if err != nil {
		return Exit{}, nil, nil, err
	}
	exit, err = p.Wait(ctx)
	if err != nil {
		err = errors.Join(err, p.Kill(context.WithoutCancel(ctx)))
	}
	return exit, bytes.TrimSpace(p.Output()), bytes.TrimSpace(p.Log()), err
}
