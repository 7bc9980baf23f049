// Package loop attaches files to loop devices (loop(4)).
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Attach returns the loop device that the file is attached to, and attaches it if
// necessary. The device is detached when its last user, such as a mount, has gone;
// the caller must close it.
func Attach(backing *os.File) (*os.File, error) {
	device, err := Find(backing)
	if device == nil && err == nil {
		device, err = attach(backing)
	}
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	return device, nil
}

// Find returns the loop device that the file is attached to, nil if there
// is none. A file system in it is then still mounted in the mount namespace of some
// process that is older than the unmount. A second device for the same blocks
// would corrupt it. The caller must close it.
func Find(backing *os.File) (*os.File, error) {
	var file unix.Stat_t
	if err := unix.Fstat(int(backing.Fd()), &file); err != nil {
		return nil, err
	}
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file") // those in use
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		name := filepath.Base(filepath.Dir(filepath.Dir(device)))
		loop, err := os.OpenFile(filepath.Join("/dev", name), os.O_RDWR, 0)
		if err != nil {
			continue // it was detached since
		}
		// An open device is not detached, so its status stays true.
		info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
		if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
			return loop, nil
		}
		loop.Close()
	}
	return nil, nil
}

// attach attaches the file to a free loop device, see loop(4).
func attach(backing *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, syscall.EBUSY) { // else another process took it between the two calls
			return nil, err
		}
	}
}

// loopSetCapacity is LOOP_SET_CAPACITY of <linux/loop.h>, see loop(4).
const loopSetCapacity = 0x4C07

// Resize tells the loop device of an attached file that the file's size has changed.
func Resize(backing *os.File) error {
	device, err := Find(backing)
	if err == nil && device == nil {
		err = errors.New("the file is not attached")
	}
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	defer device.Close()
	if err := unix.IoctlSetInt(int(device.Fd()), loopSetCapacity, 0); err != nil {
		return fmt.Errorf("size of the loop device: %w", err)
	}
	return nil
}
