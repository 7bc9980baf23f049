// Package netns creates, lists and deletes named network namespaces, and enters
// them without poisoning OS threads. It knows nothing of links, routes or rules.
//
// Named namespaces are bind mounts below Dir, as those of ip-netns(8): an
// operator sees them with "ip netns list".
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir holds one file for each named namespace of the machine.
const Dir = "/run/netns"

// threadNS is the namespace of the calling thread. /proc/self would be that of
// the main thread.
const threadNS = "/proc/thread-self/ns/net"

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// errNoReturn is what Do returns when f ended its goroutine (runtime.Goexit, t.FailNow).
var errNoReturn = errors.New("the function called in the namespace did not return")

// Path returns the path of the namespace of the given name, which need not exist.
func Path(name string) string { return filepath.Join(Dir, name) }

// Do calls f on a thread that is in the network namespace at path, and returns
// f's error. Sockets and files of /proc/sys/net that f opens belong to that
// namespace and stay usable everywhere; goroutines that f starts do not run in it.
// f runs on another goroutine, so the caller cannot recover its panics.
//
// A thread that cannot be moved back is never used again: it ends with its
// goroutine. The main thread is never moved: it cannot end, and /proc/self shows
// its namespace.
func Do(path string, f func() error) error {
	target, err := Open(path)
	if err != nil {
		return err
	}
	defer target.Close()
	return onThread(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}

// onThread calls f on a new goroutine that is locked to its thread, which f may
// move to another namespace. The thread is reused only if it could be moved back.
// It is never the main thread: while f runs, other programs would take f's
// namespace for the process's.
func onThread(f func() error) error {
	err := errNoReturn
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			err = onThread(f) // on another thread: this one is locked until it returns
			return
		}
		home, openErr := os.Open(threadNS)
		if openErr != nil {
			runtime.UnlockOSThread()
			err = openErr
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			home.Close()
		}()
		err = f()
	}()
	<-done
	return err
}

// Open opens the network namespace at path, and checks that it is one. The caller
// closes it. The error wraps os.ErrNotExist when path does not exist.
func Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	// NS_GET_NSTYPE fails with ENOTTY on what is not a namespace: ioctl_ns(2).
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace", path)
	}
	return f, nil
}

// Create makes an empty network namespace and returns its path. The error wraps
// os.ErrExist when the name is taken, by a namespace or by the file of an
// interrupted Create or Delete. A Create that fails leaves nothing. It needs
// CAP_SYS_ADMIN.
func Create(name string) (path string, err error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("%.80q cannot name a network namespace", name)
	}
	if err := prepareDir(); err != nil {
		return "", fmt.Errorf("prepare %s: %w", Dir, err)
	}
	path = Path(name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", fmt.Errorf("create network namespace: %w", err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount(threadNS, path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return "", errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), os.Remove(path))
	}
	return path, nil
}

// prepareDir makes Dir a shared mount of itself, as ip-netns(8) does before it
// adds the first name. If ip did that later, every namespace in Dir would be
// mounted twice and could not be deleted. The flock is the one that ip takes.
func prepareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	// EINVAL: Dir is no mount point yet.
	if err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, ""); !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// Delete removes the name. The namespace itself ends with its last process and
// socket. A name that does not exist is no error.
func Delete(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%.80q cannot name a network namespace", name)
	}
	path := Path(name)
	// EINVAL: not a mount point: never mounted, or unmounted by an interrupted Delete.
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	// A mount of it in another mount namespace goes with the file (since Linux 3.18).
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace: %w", err)
	}
	return nil
}

// List returns the names in Dir that begin with prefix, sorted. Some may be plain
// files of an interrupted Create or Delete; Delete removes them as well.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
