package network

import (
	"net/netip"
	"testing"

	"wrenn.dev"
)

func TestEventOfPacket(t *testing.T) {
	tcp := []byte{0x46, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 169, 254, 0, 21, 8, 8, 8, 8, 1, 1, 1, 1, 0x12, 0x34, 0x01, 0xbb}
	fragment := append([]byte{}, tcp...)
	fragment[7] = 1
	want := wrenn.EgressEvent{Protocol: wrenn.EgressTCP, Address: netip.MustParseAddr("8.8.8.8")}
	if got := eventOfPacket(fragment); got != want {
		t.Errorf("of a fragment: %+v", got)
	}
	want.Port = 443
	if got := eventOfPacket(tcp); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Nothing that a guest sends makes the agent fail.
func FuzzEventOf(f *testing.F) {
	f.Add([]byte{2, 0, 0, 5})
	f.Fuzz(func(_ *testing.T, data []byte) {
		eventOf(data)
		eventOfPacket(data)
	})
}
