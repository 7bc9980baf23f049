package tunnel

import (
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ShareHeader is in a request for a tunnel, by a Unix socket, whose client takes the
// socket of the tunnel's other end itself, and in an answer that has it: then no byte
// needs to be copied between the two. The connection that was asked on is the
// lifeline: the end of either side's lifeline ends the tunnel, and a byte from the
// client says that something went through it. Servers of earlier versions ignore the
// header.
const ShareHeader = "Wrenn-Tunnel-Share"

// signalEvery bounds how often a client says that something went through a shared socket.
const signalEvery = time.Second

// Socket returns the TCP socket of a connection when nothing that was read from it
// is left above the socket, and it is not encrypted.
func Socket(conn net.Conn) (*net.TCPConn, bool) {
	for {
		if p, ok := conn.(*prefixed); ok && len(p.early) > 0 {
			return nil, false
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			return tcp, true
		}
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		conn = outer.NetConn()
	}
}

// AsksToShare reports whether the client of a request takes a socket.
func AsksToShare(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return local != nil && r.Header.Get(ShareHeader) != ""
}

// Share answers a request for which AsksToShare by 101 and the socket. It returns the
// lifeline, which the caller closes after Watch. The caller keeps its socket open until
// then. When it fails nothing was answered, or the client has left.
func Share(w http.ResponseWriter, socket *net.TCPConn) (lifeline net.Conn, err error) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	answer := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + Protocol + "\r\n" + ShareHeader + ": 1\r\n\r\n"
	raw, err := socket.SyscallConn()
	if err == nil {
		controlled := raw.Control(func(fd uintptr) {
			_, _, err = unixOf(conn).WriteMsgUnix([]byte(answer), unix.UnixRights(int(fd)), nil)
		})
		if err == nil {
			err = controlled
		}
	}
	if err != nil {
		_ = conn.Close() // the first error is the one that counts
		return nil, err
	}
	return conn, nil
}

// unixOf returns the Unix socket of a connection for which AsksToShare.
func unixOf(conn net.Conn) *net.UnixConn {
	for {
		if local, ok := conn.(*net.UnixConn); ok {
			return local
		}
		conn = conn.(interface{ NetConn() net.Conn }).NetConn()
	}
}

// Watch returns when the client has ended the lifeline of a shared socket, or it was
// closed. It calls traffic when something went through the socket.
func Watch(lifeline net.Conn, traffic func()) {
	var signals [1]byte
	for {
		if _, err := io.ReadFull(lifeline, signals[:]); err != nil {
			return
		}
		traffic()
	}
}

// Abort ends a TCP connection at once, with a reset, for everyone who has its socket.
// Close alone would leave it to those that share it. Twice is allowed.
func Abort(socket *net.TCPConn) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = raw.Control(func(fd uintptr) { // fails when it is closed
		// See connect(2): an address of AF_UNSPEC dissolves the connection.
		unspecified := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&unspecified)), unsafe.Sizeof(unspecified)) //nolint:gosec // x/sys has no such address
	})
}

// SilentFor returns how long ago the last byte came from the peer of a socket.
func SilentFor(socket *net.TCPConn) (silent time.Duration, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	controlled := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err == nil {
		err = controlled
	}
	if err != nil {
		return 0, err
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond, nil
}

// receiver is a Unix socket on which an answer may come with a socket.
type receiver struct {
	*net.UnixConn

	got *os.File // nil when none came
}

// Read keeps the first descriptor that comes with the bytes.
func (r *receiver) Read(p []byte) (int, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	n, rightsLen, _, _, err := r.ReadMsgUnix(p, rights)
	for _, fd := range descriptors(rights[:rightsLen]) {
		file := os.NewFile(uintptr(fd), "shared")
		if r.got != nil {
			_ = file.Close() // it was not asked for
			continue
		}
		r.got = file
	}
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

func descriptors(rights []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if err == nil {
			fds = append(fds, some...)
		}
	}
	return fds
}

// socket returns the socket that came; the caller closes it. nil when none came.
func (r *receiver) socket() (*net.TCPConn, error) {
	if r.got == nil {
		return nil, nil //nolint:nilnil // none is no error
	}
	defer r.got.Close() // FileConn duplicates it
	conn, err := net.FileConn(r.got)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close() // it was not asked for
		return nil, syscall.EPROTOTYPE
	}
	return tcp, nil
}

// shared is the client's side of a shared socket.
type shared struct {
	*net.TCPConn

	lifeline *net.UnixConn
	signaled atomic.Int64 // Unix time in ns of the last signal
}

func newShared(socket *net.TCPConn, lifeline *net.UnixConn) *shared {
	s := &shared{TCPConn: socket, lifeline: lifeline}
	go s.watch()
	return s
}

// watch ends the connection with its lifeline: the server may have ended it, or have died.
func (s *shared) watch() {
	_, _ = s.lifeline.Read(make([]byte, 1)) // only the end comes
	Abort(s.TCPConn)
}

func (s *shared) Read(p []byte) (int, error) {
	n, err := s.TCPConn.Read(p)
	s.signal(n)
	return n, err
}

func (s *shared) Write(p []byte) (int, error) {
	n, err := s.TCPConn.Write(p)
	s.signal(n)
	return n, err
}

// signal tells the server now and then that something went through.
func (s *shared) signal(n int) {
	if n <= 0 {
		return
	}
	now := time.Now().UnixNano()
	if before := s.signaled.Load(); now-before >= int64(signalEvery) && s.signaled.CompareAndSwap(before, now) {
		_, _ = s.lifeline.Write([]byte{0}) // fails when the tunnel has ended
	}
}

// Close closes the connection. Twice is allowed.
func (s *shared) Close() error {
	err := s.TCPConn.Close()
	_ = s.lifeline.Close() // the server then closes its own
	return err
}

// NetConn is the socket.
func (s *shared) NetConn() net.Conn { return s.TCPConn }
