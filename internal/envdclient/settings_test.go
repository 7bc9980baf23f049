package envdclient

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func TestParseSettings(t *testing.T) {
	t.Parallel()
	got, err := ParseSettings([]byte(`{"envVars":{"A":"b"},"defaultUser":"user","defaultWorkdir":"/home/user","other":1}`))
	testkit.Must(t, err)
	if diff := cmp.Diff(&Settings{Env: map[string]string{"A": "b"}, User: "user", Workdir: "/home/user"}, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	for _, bad := range []string{``, `[]`, `{"envVars":{"A":1}}`, `{"defaultUser":"` + strings.Repeat("x", maxSettings) + `"}`} {
		_, err := ParseSettings([]byte(bad))
		testkit.WantCode(t, err, wrenn.GuestFailed)
	}
}
