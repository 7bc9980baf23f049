package ntp

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// request is a client's packet of a version and mode, whose transmit timestamp is 0102030405060708.
func request(version, mode byte) []byte {
	p := make([]byte, PacketSize)
	p[0], p[atPoll] = 3<<6|version<<3|mode, 6
	copy(p[atTransmit:], []byte{1, 2, 3, 4, 5, 6, 7, 8})
	return p
}

func TestAnswer(t *testing.T) {
	received := time.Date(2026, 11, 24, 12, 0, 0, 500_000_000, time.UTC)
	const want = "24 0a 06 ec | 00000000 | 00000041 | 7f7f0101 |" + // no leap, version 4, server
		"eeaffac080000000 | 0102030405060708 | eeaffac080000000 | eeaffac0c0000000"
	var got [PacketSize]byte
	got[47] = 0xff // garbage
	if !Answer(&got, request(4, 3), received, received.Add(250*time.Millisecond)) {
		t.Fatal("no answer")
	}
	if diff := cmp.Diff(strings.NewReplacer(" ", "", "|", "").Replace(want), hex.EncodeToString(got[:])); diff != "" {
		t.Errorf("Answer() mismatch (-want +got):\n%s", diff)
	}
}

func TestWhoIsAnswered(t *testing.T) {
	long := append(request(4, 3), make([]byte, 400)...)
	for _, tc := range []struct {
		name    string
		request []byte
		want    bool
	}{
		{"version 4", request(4, 3), true},
		{"version 3", request(3, 3), true},
		{"with extensions", long, true},
		{"version 2", request(2, 3), false},
		{"version 5", request(5, 3), false},
		{"a server", request(4, 4), false}, // two of them would answer each other forever
		{"symmetric", request(4, 1), false},
		{"broadcast", request(4, 5), false},
		{"control", request(4, 6), false},
		{"private", request(4, 7), false}, // the mode of amplification attacks
		{"short", request(4, 3)[:47], false},
		{"nothing", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var answer [PacketSize]byte
			if got := Answer(&answer, tc.request, time.Now(), time.Now()); got != tc.want {
				t.Errorf("answered %t, want %t", got, tc.want)
			}
		})
	}
}

func TestTimestamp(t *testing.T) {
	for _, tc := range []struct {
		name string
		at   time.Time
		want uint64
	}{
		{"Unix's epoch", time.Unix(0, 0), 2208988800 << 32},
		{"the end of the era", time.Date(2036, 2, 7, 6, 28, 15, 999_999_999, time.UTC), 0xffffffff_fffffffb},
		{"the next era", time.Date(2036, 2, 7, 6, 28, 16, 0, time.UTC), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Timestamp(tc.at); got != tc.want {
				t.Errorf("Timestamp(%v) = %#x, want %#x", tc.at, got, tc.want)
			}
		})
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(request(4, 3))
	f.Add([]byte{0x23})
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		var answer [PacketSize]byte
		ok := Answer(&answer, raw, time.Unix(1, 0), time.Unix(2, 0))
		if !bytes.Equal(before, raw) {
			t.Error("the request was written to")
		}
		if ok && (answer[0]&7 != modeServer || !bytes.Equal(answer[atOrigin:atReceived], raw[atTransmit:PacketSize])) {
			t.Errorf("answer %x to %x", answer, raw)
		}
	})
}
