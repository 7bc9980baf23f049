// Package credentials runs code with another user's credentials, so that the
// kernel decides what the code may do with files.
package credentials

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Credentials are the ids of a user for access to files.
type Credentials struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// unchanged is what set*id(2) leave as it is.
const unchanged = ^uintptr(0)

// Do calls f with these ids and groups, and none of root's capabilities. So the
// kernel decides, as it does for the user's programs, what f may do with files,
// wherever links lead. The credentials apply to the calling thread alone, so f must
// not leave work to other goroutines. For root, and for a program that is not root
// and cannot change to another user, Do only calls f.
//
// The effective ids change and not the file system's alone (setfsuid(2)), because
// /proc/sys looks at the former. The real and the saved ones stay root's, to come back.
func (c *Credentials) Do(f func() error) (err error) {
	if c.UID == 0 || os.Geteuid() != 0 {
		return f()
	}
	runtime.LockOSThread()
	if err := c.become(); err != nil {
		return errors.Join(err, comeBack())
	}
	defer func() {
		err = errors.Join(err, comeBack())
	}()
	return f()
}

// become changes the calling thread's credentials to c.
func (c *Credentials) become() error {
	if err := setGroups(c.Groups); err != nil {
		return fmt.Errorf("set the groups of uid %d: %w", c.UID, err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, unchanged, uintptr(c.GID), unchanged); errno != 0 {
		return fmt.Errorf("set the group of uid %d: %w", c.UID, errno)
	}
	// It takes the effective capabilities away, too: capabilities(7).
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, unchanged, uintptr(c.UID), unchanged); errno != 0 {
		return fmt.Errorf("become uid %d: %w", c.UID, errno)
	}
	return nil
}

// comeBack gives the calling thread the program's credentials again, and then
// unlocks it. A thread that cannot come back stays locked, and ends with its goroutine.
func comeBack() error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, unchanged, 0, unchanged); errno != 0 {
		return fmt.Errorf("become root again: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, unchanged, uintptr(os.Getgid()), unchanged); errno != 0 {
		return fmt.Errorf("set root's group again: %w", errno)
	}
	if err := setGroups(ownGroups); err != nil {
		return fmt.Errorf("set root's groups again: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// ownGroups are the program's.
var ownGroups = func() []uint32 {
	groups, err := os.Getgroups()
	if err != nil {
		return nil // fewer rights, not more
	}
	own := make([]uint32, len(groups))
	for i, group := range groups {
		own[i] = uint32(group)
	}
	return own
}()

// setGroups is setgroups(2) of the calling thread; syscall.Setgroups is of all threads.
func setGroups(groups []uint32) error {
	if len(groups) == 0 {
		groups = []uint32{}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
