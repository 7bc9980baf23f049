//go:build root

package network

import (
	"slices"
	"testing"
)

func TestGuestReachesTheWorld(t *testing.T) {
	l := newLab(t)
	heard := serve(t, l.world, 80)
	g := newGuest(t, acquire(t, l.open(t, nil), "a"))
	for _, network := range []string{"tcp4", "udp4"} {
		conn, err := dial(t.Context(), g.path, network, worldPublic+":80")
		must(t, err)
		echo(t, conn)
		conn.Close()
	}
	if peers := slices.Compact(heard()); !slices.Equal(peers, []string{hostPublic}) {
		t.Errorf("the world saw %v, want the host's address %s alone", peers, hostPublic)
	}
}
