//go:build root

package network

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/network/ntp"
	"wrenn.dev/internal/testkit"
)

// askTime sends requests from inside a guest to the gateway until it answers,
// and returns the answer and when it was requested.
func askTime(t *testing.T, conn net.Conn) (answer []byte, asked time.Time) {
	t.Helper()
	answer = make([]byte, 512)
	testkit.WaitUntil(t, "the guest has the time", func() bool {
		request := [ntp.PacketSize]byte{0: 4<<3 | 3}
		asked = time.Now()
		binary.BigEndian.PutUint64(request[40:], ntp.Timestamp(asked))
		if _, err := conn.Write(request[:]); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(answer)
		answer = answer[:max(n, 0)]
		if err != nil || len(answer) != ntp.PacketSize || string(answer[24:32]) != string(request[40:]) {
			answer = answer[:cap(answer)]
			return false
		}
		return true
	})
	return answer, asked
}

// checkTime requests the time in a guest and compares it with the test's clock.
func checkTime(t *testing.T, path string) {
	t.Helper()
	conn, err := dial(t.Context(), path, "udp4", NTPAddress+":123")
	testkit.Must(t, err)
	defer conn.Close()
	answer, asked := askTime(t, conn)
	received, sent := binary.BigEndian.Uint64(answer[32:]), binary.BigEndian.Uint64(answer[40:])
	if received < ntp.Timestamp(asked) || sent < received || sent > ntp.Timestamp(time.Now()) {
		t.Errorf("asked at %x, received at %x, answered at %x, now %x: want them in order", ntp.Timestamp(asked), received, sent, ntp.Timestamp(time.Now()))
	}
}

// Every owner of a slot gets the time, also after a crash of the agent.
func TestGuestsHaveTheTime(t *testing.T) {
	l := newLab(t)
	p, err := Open(t.Context(), l.cfg)
	testkit.Must(t, err)
	ctx := context.WithoutCancel(t.Context())
	first, err := p.Acquire(ctx, "first")
	testkit.Must(t, err)
	g := newGuest(t, first)
	checkTime(t, g.path)
	g.stop()
	testkit.Must(t, first.Release(ctx))

	second, err := p.Acquire(ctx, "second")
	testkit.Must(t, err)
	attached := openTAP(t, second.Namespace(), second.TAP())
	attached.Close()
	l.abandon(p)

	p = l.open(t, nil)
	adopted, err := p.Adopt(ctx, second.Ref())
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, adopted.Release(ctx)) })
	g2 := newGuest(t, adopted)
	checkTime(t, g2.path)
}

// A guest that floods gets no more than its share, whether its packets belong to
// a connection or not, and the rest does not reach the agent.
func TestQuestionsForTheTimeAreBounded(t *testing.T) {
	l := newLab(t)
	s := acquire(t, l.open(t, nil), "a")
	g := newGuest(t, s)
	conn, err := dial(t.Context(), g.path, "udp4", NTPAddress+":123")
	testkit.Must(t, err)
	defer conn.Close()
	askTime(t, conn)
	const enough = 500
	began := time.Now()
	request := [ntp.PacketSize]byte{0: 4<<3 | 3}
	answers := 0
	testkit.WaitUntil(t, "a flood is dropped", func() bool {
		for range 100 { // more at once are lost on the way
			_, err := conn.Write(request[:])
			testkit.Must(t, err)
		}
		for {
			if _, _, err := recvNow(t, conn); err != nil {
				break
			}
			answers++
		}
		return counted(t, s.Namespace(), slotTable, "too many questions for the time") >= enough
	})
	if most := ntpBurst + ntpRate*int(time.Since(began)/time.Second+1); answers > most {
		t.Errorf("%d answers in %v, want at most %d", answers, time.Since(began), most)
	}
}

// Packets that are no requests get no answer, nor do requests of others than the guest.
func TestTheTimeIsForTheGuestAlone(t *testing.T) {
	l := newLab(t)
	s := acquire(t, l.open(t, nil), "a")
	g := newGuest(t, s)
	inside, err := dial(t.Context(), s.Namespace(), "udp4", NTPAddress+":123")
	testkit.Must(t, err)
	defer inside.Close()
	conn, err := dial(t.Context(), g.path, "udp4", NTPAddress+":123")
	testkit.Must(t, err)
	defer conn.Close()
	for _, odd := range [][]byte{{}, {4<<3 | 3}, make([]byte, ntp.PacketSize), append([]byte{4<<3 | 7}, make([]byte, ntp.PacketSize)...)} {
		_, err := conn.Write(odd)
		testkit.Must(t, err)
	}
	if _, err = inside.Write(append([]byte{4<<3 | 3}, make([]byte, ntp.PacketSize-1)...)); !errors.Is(err, unix.EPERM) {
		t.Errorf("the slot itself may ask: %v", err)
	}
	// Only the valid request is answered; it comes after the invalid ones.
	askTime(t, conn)
	for name, c := range map[string]net.Conn{"the guest": conn, "the slot itself": inside} {
		n, _, err := recvNow(t, c)
		if err == nil {
			t.Errorf("%s got %d bytes more", name, n)
		}
	}
}

// recvNow reads a packet that has already come.
func recvNow(t *testing.T, c net.Conn) (n int, from unix.Sockaddr, err error) {
	t.Helper()
	raw, rawErr := c.(*net.UDPConn).SyscallConn()
	testkit.Must(t, rawErr)
	testkit.Must(t, raw.Control(func(fd uintptr) {
		n, from, err = unix.Recvfrom(int(fd), make([]byte, 512), unix.MSG_DONTWAIT)
	}))
	return n, from, err
}
