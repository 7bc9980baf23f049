package guest

import (
	"os"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest/clock"
	"wrenn.dev/internal/guest/identity"
)

// Kernel is the kernel that the program runs on. Its methods need root.
type Kernel struct {
	clock.Kernel
	identity.Linux
}

// Sync is syncfs(2) of /. Not sync(2): a file system in user space whose
// program is frozen would never answer.
func (Kernel) Sync() error {
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	return unix.Syncfs(int(root.Fd()))
}
