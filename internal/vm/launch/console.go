package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ConsoleSize is how much of a VMM's output is kept.
const ConsoleSize = 256 << 10

// consoleLook is the pause between two looks at whether the file must be begun
// again. A guest that prints more than half the file within it loses some.
const consoleLook = time.Second

// console is a file of a fixed size for what a VMM prints. The bound is the
// kernel's: it is a memfd sealed against growing, so a write beyond its end
// fails (EPERM) and the VMM drops the output, and goes on, when no agent is
// there. A pipe would fill up and stall the guest, a plain file would grow, and
// a limit on file sizes (RLIMIT_FSIZE) would hit disks too.
//
// An agent that is there turns the file into a ring: it shares the VMM's open
// file description, and with it the offset, and sets that back to the start in
// time. So the last output is kept, not the first.
type console struct{ file *os.File }

func newConsole() (*console, error) {
	fd, err := unix.MemfdCreate("console", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if err := errors.Join(unix.Ftruncate(fd, ConsoleSize), seal(fd)); err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return nil, err
	}
	return &console{os.NewFile(uintptr(fd), "console")}, nil
}

func seal(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return err
}

// adoptConsole takes the console of a running VMM, which is its standard output.
func adoptConsole(pidfd int) (*console, error) {
	fd, err := unix.PidfdGetfd(pidfd, unix.Stdout, 0) // a description of our own would have an offset of its own
	if err != nil {
		return nil, fmt.Errorf("pidfd_getfd: %w", err)
	}
	return &console{os.NewFile(uintptr(fd), "console")}, nil
}

// keep begins the file again whenever it is half full, until gone is closed.
// It looks by the clock: inotify would take one of the 128 instances that a
// user has by default for each machine.
func (c *console) keep(gone <-chan struct{}) {
	tick := time.NewTicker(consoleLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.turn()
		case <-gone:
			return
		}
	}
}

// turn goes back to the start of the file when half of it is written. What is
// behind the offset is wiped, so that the order of what is kept stays known:
// the bytes from the offset on are older than those before it.
func (c *console) turn() {
	pos, err := c.file.Seek(0, io.SeekCurrent)
	if err != nil || pos < ConsoleSize/2 {
		return
	}
	if _, err := c.file.Seek(0, io.SeekStart); err == nil {
		_, _ = c.file.WriteAt(make([]byte, ConsoleSize-pos), pos) // best effort: a mixed-up order at worst
	}
}

// tail is what the file holds, oldest first.
func (c *console) tail() []byte {
	all := make([]byte, ConsoleSize)
	n, err := c.file.ReadAt(all, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	pos, err := c.file.Seek(0, io.SeekCurrent)
	if err != nil || pos > int64(n) {
		pos = int64(n)
	}
	// Room that was never written, or was wiped, reads as zeros.
	return bytes.ReplaceAll(append(all[pos:n:n], all[:pos]...), []byte{0}, nil)
}
