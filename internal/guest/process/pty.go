package process

import (
	"errors"
	"fmt"
	"math"
	"os"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "wrenn.dev/proto/gen/envd/process"
)

// defaultSize is the size of a terminal for requests without one.
var defaultSize = unix.Winsize{Col: 80, Row: 24}

// openPTY opens a new terminal. The near end is non-blocking, so that deadlines
// work on it, which libraries do not promise. TIOCGPTPEER (ioctl_tty(2)) opens the
// far end: it needs no /dev/pts, and one that was replaced cannot mislead it.
func openPTY(size unix.Winsize) (near, far *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	near = os.NewFile(uintptr(fd), "ptmx")
	peer, err := unlockPTY(fd, size)
	if err != nil {
		near.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	return near, os.NewFile(uintptr(peer), "pts"), nil
}

func unlockPTY(fd int, size unix.Winsize) (peer int, err error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size); err != nil {
		return -1, err
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func resizePTY(near *os.File, size unix.Winsize) error {
	conn, err := near.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := conn.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size) })
	return errors.Join(ctlErr, err)
}

// sizeOf returns the size that a request asks for, if it is valid.
func sizeOf(pty *pb.PTY) (unix.Winsize, error) {
	size := pty.GetSize()
	if size == nil || (size.GetCols() == 0 && size.GetRows() == 0) {
		return defaultSize, nil
	}
	if size.GetCols() > math.MaxUint16 || size.GetRows() > math.MaxUint16 {
		return unix.Winsize{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("terminal size %dx%d: more than %d", size.GetCols(), size.GetRows(), math.MaxUint16))
	}
	return unix.Winsize{Col: uint16(size.GetCols()), Row: uint16(size.GetRows())}, nil
}
