package storage

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/loop"
)

// mountLoop mounts the image at dir. The loop device is detached with the unmount.
func mountLoop(image, dir string) error {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer backing.Close()
	device, err := loop.Attach(backing)
	if err != nil {
		return err
	}
	defer device.Close() // autoclear: it stays while it is mounted
	if err := unix.Mount(device.Name(), dir, "xfs", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", image, err)
	}
	return nil
}
