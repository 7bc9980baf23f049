// Package rootfs makes root file systems: a new Debian by mmdebstrap, a tree from
// archives and container layers, an ext4 image of a tree. It changes files in an
// image without mounting it, because the host's kernel must not parse a file
// system that a guest wrote.
//
// archive/tar parses the archives; unpacking them is not left to a library, because
// they are hostile. Every path goes through os.Root, links mean what they will mean
// in the guest, entries, names and disk space are bounded over all layers of an
// image, and devices and host-specific attributes are dropped. Libraries that do
// this need a chroot, or trust a check of names.
package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"wrenn.dev"
)

// installs names the package of each program that is run here.
var installs = map[string]string{
	"mmdebstrap": "mmdebstrap",
	"mke2fs":     "e2fsprogs",
	"debugfs":    "e2fsprogs",
	"e2fsck":     "e2fsprogs",
	"dpkg-deb":   "dpkg",
}

// find returns the path of a program. The error for a missing one says what to
// install. It also looks in the sbin directories, which may not be in PATH.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", wrenn.Errorf(wrenn.FailedPrecondition, "%s is missing (apt-get install %s)", name, installs[name])
}

// command returns a command that runs a program in dir, with messages in English.
// When ctx ends, its process group gets SIGTERM first, so that the program can clean
// up. The group is needed because mmdebstrap leaves signals to its children.
func command(ctx context.Context, dir, name string, args ...string) (*exec.Cmd, error) {
	path, err := find(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd, nil
}

// run runs a program on the files of an image, confined: see jailed. It returns what
// the program printed. If it fails, the error has the output.
func (j jailed) run(ctx context.Context, name string, args ...string) (string, error) {
	stdout, stderr, err := j.start(ctx, name, args...)
	output := append(append(stdout, '\n'), stderr...)
	if err != nil {
		return string(output), explain(ctx, name, err, output)
	}
	return string(output), nil
}

// endGroup kills processes that a canceled program has left.
func endGroup(ctx context.Context, cmd *exec.Cmd) {
	if ctx.Err() != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // usually there are none
	}
}

// explain turns a program's failure into an error. Causes that a user can fix get
// a message.
func explain(ctx context.Context, name string, err error, output []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = fmt.Errorf("%s: %w: %s", name, err, tail(output))
	for _, known := range []struct {
		code    wrenn.Code
		message string
		signs   []string
	}{
		{wrenn.Exhausted, "no space left for the image", []string{"No space left on device", "Could not allocate block"}},
		{wrenn.Unavailable, "the Debian mirror cannot be reached: check this machine's network and its apt sources",
			[]string{"Temporary failure resolving", "Could not resolve", "Could not connect", "Unable to connect", "Connection failed", "Connection timed out", "Network is unreachable"}},
	} {
		for _, sign := range known.signs {
			if bytes.Contains(output, []byte(sign)) {
				return &wrenn.Error{Code: known.code, Message: known.message, Err: err}
			}
		}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "no space left for the image", Err: err}
	}
	return err
}

// tail returns the end of a program's output, for an error.
func tail(output []byte) string {
	const limit = 600
	return strings.TrimSpace(string(output[max(0, len(output)-limit):]))
}
