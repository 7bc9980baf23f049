//go:build root

package network

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"wrenn/internal/testkit"
)

// BenchmarkDownload compares downloads of a guest by plain NAT with those by name, which
// the agent passes on. The goal is a ratio of 0.8 or more. Read both together: the guest
// of the lab has no kernel, and is a bottleneck of both.
func BenchmarkDownload(b *testing.B) {
	const size = 32 << 20
	n := newNamesWorld(b)
	n.slot = acquire(b, n.open(b, nil), "a")
	n.guest = newGuest(b, n.slot)
	for _, way := range []struct {
		name  string
		names []string
		to    string
	}{{"nat", nil, worldPublic}, {"name", []string{"example.com"}, somewhere}} {
		b.Run(way.name, func(b *testing.B) {
			testkit.Must(b, n.slot.SetPolicy(b.Context(), policy(b, way.names != nil, way.names, nil)))
			client := n.client(b, way.to)
			b.SetBytes(size)
			for b.Loop() {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, fmt.Sprintf("http://example.com/zeros?n=%d", size), nil)
				testkit.Must(b, err)
				resp, err := client.Do(req)
				testkit.Must(b, err)
				got, err := io.Copy(io.Discard, resp.Body)
				if testkit.Must(b, err); got != size {
					b.Fatalf("got %d bytes", got)
				}
				resp.Body.Close()
			}
		})
	}
}
