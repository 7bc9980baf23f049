package api

import (
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// TestAmbiguousLengths has requests with two lengths refused before any handler, that
// of the gateway included.
func TestAmbiguousLengths(t *testing.T) {
	reached := false
	server := serve(t, &stub{}, func(s *Server) {
		s.SetFront(func(http.Handler) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })
		})
	})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.address)
	testkit.Must(t, err)
	if diff := cmp.Diff([]int{http.StatusBadRequest}, testkit.Statuses(t, conn, fmt.Sprintf(testkit.Ambiguous, "/v1/sandboxes"))); diff != "" || reached {
		t.Errorf("a handler was reached: %t; statuses (-want +got):\n%s", reached, diff)
	}
}
