package guest_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

func TestAmbiguousLengths(t *testing.T) {
	e := startEnvd(t)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(e.base, "http://"))
	testkit.Must(t, err)
	if diff := cmp.Diff([]int{http.StatusBadRequest}, testkit.Statuses(t, conn, fmt.Sprintf(testkit.Ambiguous, "/health"))); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}
