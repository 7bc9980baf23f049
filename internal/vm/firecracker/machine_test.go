package firecracker

import (
	"errors"
	"fmt"
	"testing"
)

func TestClockMissing(t *testing.T) {
	refusal := &Fault{"PUT /snapshot/load", 400, "Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: " +
		"Failed to restore microVM state: clock_realtime requested but not present in the snapshot state"} // 1.17.0-dev
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"that refusal", refusal, true},
		{"wrapped", fmt.Errorf("restore: %w", errors.Join(refusal, nil)), true},
		{"another refusal", &Fault{"PUT /snapshot/load", 400, "No such file"}, false},
		{"the same words of another process else", errors.New(refusal.Message), false},
		{"none", nil, false},
	} {
		if got := clockMissing(c.err); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestLog(t *testing.T) {
	out := []byte("2026-11-24T23:38:54.077702576 [m-1:main:INFO] Running Firecracker v1.12.1\n" +
		"[    0.000000] Linux version 6.1.0\r\n" +
		"2026-11-24T23:38:54.255754105 [m-1:fc_api:ERROR] SerdeJson\n" +
		"login: \n2026-11-24T23:38:54.255754105 [m-1:fc_vcpu 0:INFO] cut")
	if got, want := string(logLine.ReplaceAll(out, nil)), "[    0.000000] Linux version 6.1.0\r\nlogin: \n"; got != want {
		t.Errorf("the guest's part is %q, want %q", got, want)
	}
	want := "[    0.000000] Linux version 6.1.0\r\n2026-11-24T23:38:54.255754105 [m-1:fc_api:ERROR] SerdeJson\nlogin: \n"
	if got := string(innocuous.ReplaceAll(out, nil)); got != want {
		t.Errorf("what tells of an end is %q, want %q", got, want)
	}
}
