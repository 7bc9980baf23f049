package process

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What a process leaves in its pipes is delivered before its end. When others
// still hold a pipe (a server in the background), waiting for its end could
// take for ever; so after the process's exit its output ends
// when it was silent for quiet, or has gone on for linger.
const (
	quiet  = 100 * time.Millisecond
	linger = time.Second
)

// The size of one read, which is also the size of one event.
const (
	pipeChunk = 32 << 10
	ptyChunk  = 16 << 10
)

// source is where one output of a process is read: a pipe, or the terminal.
type source struct {
	file  *os.File // non-blocking, so that deadlines work
	chunk int
	// emit hands a piece on and reports whether its memory may be used again.
	emit func([]byte) (reusable bool)
}

// exited tells a read that goes on that the process ended. pump notices at its
// next read if it is not reading now.
func (s *source) exited() {
	_ = s.file.SetReadDeadline(time.Unix(1, 0)) // fails only when it is closed: then pump has ended
}

// pump emits what is read until the end of the output. open is true when
// somebody else still holds the other end; then the caller decides about the file.
func (s *source) pump() (open bool) {
	buf, err := s.copy(make([]byte, s.chunk), func() bool { return true })
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	return s.drain(buf)
}

// drain emits what is there after the process's exit.
func (s *source) drain(buf []byte) (open bool) {
	stop := time.Now().Add(linger)
	buf, err := s.copy(buf, func() bool {
		_ = s.file.SetReadDeadline(minTime(time.Now().Add(quiet), stop))
		return time.Now().Before(stop)
	})
	if !errors.Is(err, os.ErrDeadlineExceeded) && err != nil {
		return false
	}
	return s.sweep(buf)
}

// sweep emits what is in the pipe now, without waiting. A slow reader may have
// used up all of linger while the process's own last bytes are still there; they are at
// most what the pipe holds.
func (s *source) sweep(buf []byte) (open bool) {
	_ = s.file.SetReadDeadline(time.Time{})
	for left := s.capacity(); left > 0; {
		n, err := s.readNow(buf)
		if errors.Is(err, unix.EAGAIN) {
			return true
		}
		if n <= 0 {
			return false
		}
		left -= n
		buf = s.hand(buf, n)
	}
	return true
}

// copy emits until an error of read, which it returns, or until more is false.
// It returns the buffer to go on with.
func (s *source) copy(buf []byte, more func() bool) ([]byte, error) {
	for more() {
		n, err := s.file.Read(buf)
		if n > 0 {
			buf = s.hand(buf, n)
		}
		if err != nil {
			return buf, err
		}
	}
	return buf, nil
}

func (s *source) hand(buf []byte, n int) []byte {
	if s.emit(buf[:n]) {
		return buf
	}
	return make([]byte, s.chunk)
}

func (s *source) readNow(buf []byte) (n int, err error) {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := conn.Control(func(fd uintptr) {
		n, err = unix.Read(int(fd), buf)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Read(int(fd), buf)
		}
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	return n, err
}

// capacity is how much the kernel can hold between the process and this end.
// A terminal has no such number: a megabyte is far more than its buffers.
func (s *source) capacity() int {
	const most = 1 << 20
	conn, err := s.file.SyscallConn()
	if err != nil {
		return most
	}
	size := 0
	if conn.Control(func(fd uintptr) { size, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) }) != nil || err != nil {
		return most
	}
	return size
}

// discard reads what others still write, so that they neither block nor get
// SIGPIPE, until they close it or file is closed.
func (s *source) discard() {
	_ = s.file.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, s.file) // nobody is interested any more
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
