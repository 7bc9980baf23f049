package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network/ntp"
)

// NTPAddress is where a guest asks for the time.
const NTPAddress = GatewayAddress

// Requests for the time that a guest may send in a second, and at once: chrony
// sends four in 6 s when it starts and when it lost its source. The slot's rules
// drop the rest, so that a flood never reaches the agent.
const (
	ntpRate  = 4
	ntpBurst = 16
)

// clocks serves the time to guests: with a socket inside each slot's namespace,
// and a goroutine that sleeps until a request comes.
type clocks struct {
	log  *slog.Logger
	work sync.WaitGroup

	mu   sync.Mutex           // guards open
	open map[int]*net.UDPConn // by the slot's index
}

func newClocks(log *slog.Logger) *clocks {
	return &clocks{log: log, open: make(map[int]*net.UDPConn)}
}

// serve answers requests in the namespace at path, of slot index, until stop. It
// replaces the slot's earlier server. The TAP must have its address.
func (c *clocks) serve(index int, path string) error {
	c.stop(index)
	conn, err := listenNTP(path)
	if err != nil {
		return fmt.Errorf("serve the time: %w", err)
	}
	c.mu.Lock()
	c.open[index] = conn
	c.mu.Unlock()
	c.work.Go(func() {
		if err := answerAll(conn); !errors.Is(err, net.ErrClosed) {
			_ = conn.Close() // it is of no use now
			c.log.Warn("time server of network slot stopped", slog.Int("slot", index), slog.Any("err", err))
		}
	})
	return nil
}

// stop stops the server of a slot and closes its socket.
func (c *clocks) stop(index int) {
	c.mu.Lock()
	conn := c.open[index]
	delete(c.open, index)
	c.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // a datagram socket has nothing to flush
	}
}

// close stops all servers and returns when their goroutines have ended.
func (c *clocks) close() {
	c.mu.Lock()
	for _, conn := range c.open {
		_ = conn.Close() // as in stop
	}
	clear(c.open)
	c.mu.Unlock()
	c.work.Wait()
}

// listenNTP opens a socket whose packets carry the time at which the kernel received them.
func listenNTP(path string) (*net.UDPConn, error) {
	var conn net.PacketConn
	err := netns.Do(path, func() (err error) {
		address := netip.AddrPortFrom(netip.MustParseAddr(NTPAddress), ntp.Port)
		conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", address.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	udp := conn.(*net.UDPConn)
	if err := prepare(udp); err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	return udp, nil
}

// prepare sets the options of a socket.
func prepare(udp *net.UDPConn) error {
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		const queue = 8 << 10 // bytes; an old request is not worth an answer
		setErr = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, queue),
		)
	})
	return errors.Join(err, setErr)
}

// answerAll answers the guest until conn is closed or fails.
func answerAll(conn *net.UDPConn) error {
	guest := netip.MustParseAddr(GuestAddress)
	var request, answer [ntp.PacketSize]byte // longer requests are cut off
	oob := make([]byte, unix.CmsgSpace(16))  // struct timespec
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(request[:], oob)
		if err != nil {
			return err
		}
		received := kernelTime(oob[:oobn])
		if from.Addr().Unmap() != guest || !ntp.Answer(&answer, request[:n], received, time.Now()) {
			continue
		}
		// The guest repeats a request whose answer is lost.
		if _, err := conn.WriteToUDPAddrPort(answer[:], from); errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}

// kernelTime returns when the kernel received a packet (SO_TIMESTAMPNS,
// socket(7)): the agent may have slept since. It returns the current time if
// the packet has no timestamp.
func kernelTime(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}
