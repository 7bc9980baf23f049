//go:build root

package clock

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"wrenn.dev/internal/testkit"
)

// serveTime answers NTP requests (RFC 5905 §7.3) on a socket and sends a word on
// requests for each.
func serveTime(conn *net.UDPConn, requests chan<- struct{}) {
	var request [48]byte
	for {
		n, from, err := conn.ReadFromUDP(request[:])
		if err != nil {
			return
		}
		if n < len(request) {
			continue
		}
		answer := make([]byte, len(request))
		answer[0], answer[1], answer[3] = 4<<3|4, 10, 0x100-20 // version and mode, stratum, precision
		copy(answer[24:32], request[40:])                      // the client's time
		now := ntpTime(time.Now())
		for _, at := range []int{16, 32, 40} {
			binary.BigEndian.PutUint64(answer[at:], now)
		}
		_, _ = conn.WriteToUDP(answer, from) // what is lost is asked again
		requests <- struct{}{}
	}
}

// ntpTime is seconds since 1900, with a fraction of 32 bits.
func ntpTime(t time.Time) uint64 {
	return uint64(t.Unix()+2208988800)<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}

// startChrony starts a real chronyd that asks as those in guests do, and leaves
// this machine's clock alone.
func startChrony(t *testing.T, dir string, port int) {
	t.Helper()
	program := testkit.Program(t, chronyd)
	conf := filepath.Join(dir, "conf")
	text := fmt.Sprintf("server 127.0.0.1 port %d iburst minpoll 6 maxpoll 10\nport 0\ncmdport 0\nbindcmdaddress %s/chronyd.sock\npidfile %s/pid\n", port, dir, dir)
	testkit.Must(t, os.WriteFile(conf, []byte(text), 0o644))
	ctx, cancel := context.WithCancel(context.Background())
	daemon := exec.CommandContext(ctx, program, "-x", "-d", "-u", "root", "-f", conf)
	daemon.Stderr = t.Output()
	testkit.Must(t, daemon.Start())
	t.Cleanup(func() {
		cancel()
		_ = daemon.Wait() // it was killed
	})
}

// A chronyd that sleeps until its next question, 64 s away, asks at once.
func TestNotifyChrony(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "chrony") //nolint:usetesting // t.TempDir's names are too long for a socket
	testkit.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	testkit.Must(t, err)
	defer conn.Close()
	requests := make(chan struct{}, 100)
	go serveTime(conn, requests)
	startChrony(t, dir, conn.LocalAddr().(*net.UDPAddr).Port)
	await := func(what string) {
		t.Helper()
		const wait = 40 * time.Second // less than a minute, after which it asks by itself
		for n := range measurements {
			select {
			case <-requests:
			case <-time.After(wait):
				t.Fatalf("%s it asked %d times in %s", what, n, wait)
			}
		}
	}
	await("at its start")
	server, own := filepath.Join(dir, "chronyd.sock"), filepath.Join(dir, "envd.sock")
	testkit.WaitUntil(t, "chronyd ends its burst", func() bool {
		out, err := exec.CommandContext(t.Context(), "chronyc", "-h", server, "-c", "-n", "activity").Output()
		return err == nil && string(out) == "1,0,0,0,0\n"
	})
	for range 2 { // the first leaves nothing in the second's way
		testkit.Must(t, notifyChrony(server, own))
	}
	await("when it was notified")
	if _, err := os.Lstat(own); err == nil {
		t.Errorf("%s is left", own)
	}
}

func TestNotifyWithoutChrony(t *testing.T) {
	dir := t.TempDir()
	if err := notifyChrony(filepath.Join(dir, "chronyd.sock"), filepath.Join(dir, "envd.sock")); err == nil {
		t.Error("there is no chronyd, and no error")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}
