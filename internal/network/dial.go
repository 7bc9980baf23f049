package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
)

// dialIn connects to an IPv4 address with a socket of the namespace at path.
// Only the socket is made inside. With a net.Dialer inside, a guest that drops
// packets would hold a thread for as long as the dial lasts, and a Go program
// that has too many threads is ended.
//
// Mark, if not 0, is the mark of the socket's packets.
func dialIn(ctx context.Context, path, network, address string, mark int) (net.Conn, error) {
	remote, err := netip.ParseAddrPort(address)
	if err != nil || !remote.Addr().Is4() {
		return nil, &wrenn.Error{Code: wrenn.Invalid, Message: fmt.Sprintf("%.80q is not an IPv4 address and a port", address), Err: err}
	}
	var kind int
	switch network {
	case "tcp", "tcp4":
		kind = unix.SOCK_STREAM
	case "udp", "udp4":
		kind = unix.SOCK_DGRAM
	default:
		return nil, wrenn.Errorf(wrenn.Invalid, "%.80q is not tcp or udp", network)
	}
	fd := -1
	err = netns.Do(path, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	if err == nil && mark != 0 {
		if err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark)); err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	var conn net.Conn
	if err == nil {
		conn, err = connect(ctx, fd, remote)
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(remote), Err: err}
	}
	return conn, nil
}

// connect connects the non-blocking socket fd, and closes it.
func connect(ctx context.Context, fd int, remote netip.AddrPort) (net.Conn, error) {
	// This comes before the runtime polls the socket: a socket that is not
	// connecting polls as hung up.
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()})
	socket := os.NewFile(uintptr(fd), remote.String())
	defer socket.Close() // net.FileConn duplicates it
	if err != nil && !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EINTR) {
		return nil, os.NewSyscallError("connect", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := waitConnected(socket); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return net.FileConn(socket)
}

// waitConnected returns when the socket is connected, the connection has failed,
// or the write deadline has passed. See connect(2), EINPROGRESS.
func waitConnected(socket *os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = os.NewSyscallError("getsockopt", err)
			return true
		case code != 0:
			result = os.NewSyscallError("connect", unix.Errno(code))
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // else a spurious wakeup
	})
	return errors.Join(err, result)
}
