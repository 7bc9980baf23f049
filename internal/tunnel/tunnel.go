// Package tunnel joins two connections into one: what one side sends the other
// receives, and the end of one direction leaves the other open. A tunnel that is
// idle holds almost no memory, because hosts and control planes hold thousands.
package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
)

const (
	// idleBuffer is what a direction holds while nothing is sent.
	idleBuffer = 1 << 10
	// busyBuffer is what it borrows while much is.
	busyBuffer = 128 << 10
)

var busyBuffers = sync.Pool{New: func() any { return new([busyBuffer]byte) }}

// Join passes bytes between a and b until both directions have ended, and
// closes both. When one side closes its direction only, the other side sees
// that and may still send. When a side breaks, the other is reset, so that its
// reader does not take a cut stream for a whole one. Join calls traffic, which may be
// nil, whenever bytes have been passed, from two goroutines.
func Join(a, b io.ReadWriteCloser, traffic func()) {
	if traffic == nil {
		traffic = func() {}
	}
	var back sync.WaitGroup
	back.Go(func() { pass(a, b, traffic) })
	pass(b, a, traffic)
	back.Wait()
	_ = a.Close() // both directions have ended: nothing is lost
	_ = b.Close()
}

// pass copies from src to dst, to the end of what src sends.
func pass(dst, src io.ReadWriteCloser, traffic func()) {
	if err := copyAll(dst, src, traffic); err != nil || closeWrite(dst) != nil {
		Reset(dst)
		Reset(src)
	}
}

// copyAll is io.Copy with a small buffer until more than that arrives at once.
func copyAll(dst io.Writer, src io.Reader, traffic func()) error {
	small := make([]byte, idleBuffer)
	for {
		n, err := passOne(dst, src, small, traffic)
		if n == len(small) && err == nil {
			err = copyBusy(dst, src, traffic)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copyBusy copies with a large buffer until little arrives.
func copyBusy(dst io.Writer, src io.Reader, traffic func()) error {
	buffer := busyBuffers.Get().(*[busyBuffer]byte)
	defer busyBuffers.Put(buffer)
	for {
		n, err := passOne(dst, src, buffer[:], traffic)
		if err != nil || n <= idleBuffer {
			return err
		}
	}
}

func passOne(dst io.Writer, src io.Reader, buffer []byte, traffic func()) (int, error) {
	n, err := src.Read(buffer)
	if n > 0 {
		if _, err := dst.Write(buffer[:n]); err != nil {
			return n, err
		}
		traffic()
	}
	return n, err
}

// closeWrite ends the direction to c. A connection that cannot end one
// direction alone is closed when both have ended.
func closeWrite(c io.Writer) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Reset breaks a connection: what reads from it fails, at both ends. Twice is allowed.
func Reset(c io.Closer) {
	under := c
	for {
		wrapped, ok := under.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		under = wrapped.NetConn()
	}
	if tcp, ok := under.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // close sends RST
	}
	// Closed below TLS, which would say goodbye.
	_ = under.Close()
}
