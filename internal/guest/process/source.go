package process

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a process leaves in its pipes is delivered before its end. When others
// still hold a pipe (a server in the background), its end may never come; so
// after the process's exit its output ends when there was none for quiet, or when
// linger has passed.
const (
	quiet  = 100 * time.Millisecond
	linger = time.Second
)

// The size of one read, which is also the most that is in one event. A read takes
// all that a pipe of the usual size holds: half of it at a time was 0.38 of a
// pipe's speed instead of 0.53.
const (
	pipeChunk = 64 << 10
	ptyChunk  = 16 << 10
)

// buffer holds one read.
type buffer [pipeChunk]byte

// newBuffers returns the pool that the sources of a service share: a source that
// waits for output holds no buffer.
func newBuffers() *sync.Pool { return &sync.Pool{New: func() any { return new(buffer) }} }

// source is where one output of a process is read: a pipe, or the terminal.
type source struct {
	file    *os.File // non-blocking, so that deadlines work
	chunk   int
	buffers *sync.Pool
	emit    func([]byte) // must copy what it keeps
}

// exited tells pump that the process ended: a read that is under way fails, or the next one.
func (s *source) exited() {
	_ = s.file.SetReadDeadline(time.Unix(1, 0)) // fails only when it is closed: then pump has ended
}

// pump emits what is read until the end of the output. open is true when
// another process still holds the other end; then the caller decides about the file.
func (s *source) pump() (open bool) {
	for {
		if _, err := s.move(true); errors.Is(err, os.ErrDeadlineExceeded) {
			return s.drain()
		} else if err != nil {
			return false
		}
	}
}

// drain emits what comes after the process's exit.
func (s *source) drain() (open bool) {
	stop := time.Now().Add(linger)
	for time.Now().Before(stop) {
		_ = s.file.SetReadDeadline(minTime(time.Now().Add(quiet), stop))
		if _, err := s.move(true); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return false
		}
	}
	return s.sweep()
}

// sweep emits what is in the pipe now, without waiting. A slow reader may have
// used up all of linger while the process's own last bytes are still in the pipe; they
// are at most what it holds.
func (s *source) sweep() (open bool) {
	for left := s.capacity(); left > 0; {
		n, err := s.move(false)
		if err != nil {
			return errors.Is(err, unix.EAGAIN)
		}
		left -= n
	}
	return true
}

// move reads once and emits what it got. With wait it waits for output until the
// file's deadline; without, no output is EAGAIN. The end is io.EOF.
func (s *source) move(wait bool) (n int, err error) {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var buf *buffer
	attempt := func(fd uintptr) (done bool) {
		buf = s.buffers.Get().(*buffer)
		err = eintr(func() (err error) {
			n, err = unix.Read(int(fd), buf[:s.chunk])
			return err
		})
		if err != nil || n == 0 {
			s.buffers.Put(buf)
		}
		return !errors.Is(err, unix.EAGAIN)
	}
	var connErr error
	if wait {
		connErr = conn.Read(attempt)
	} else {
		connErr = conn.Control(func(fd uintptr) { attempt(fd) })
	}
	switch {
	case connErr != nil:
		return 0, connErr
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	s.emit(buf[:n])
	s.buffers.Put(buf)
	return n, nil
}

// capacity returns how many bytes the kernel can hold between the process and this
// end. A terminal reports no such number: a megabyte is far more than its buffers.
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

// discard reads what other processes still write, so that they neither block nor
// get SIGPIPE, until they close the pipe or file is closed.
func (s *source) discard() {
	_ = s.file.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, s.file) // no subscriber gets it
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
