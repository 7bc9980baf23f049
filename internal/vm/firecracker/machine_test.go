package firecracker

import "testing"

func TestWithoutLog(t *testing.T) {
	out := "2026-11-24T23:38:54.077702576 [m-1:main] Running Firecracker v1.12.1\n" +
		"[    0.000000] Linux version 6.1.0\r\n" +
		"2026-11-24T23:38:54.255754105 [m-1:fc_api] The API server received a Patch request on \"/vm\".\n" +
		"login: \n2026-11-24T23:38:54.255754105 [m-1:fc_vcpu 0] cut"
	if got, want := withoutLog([]byte(out)), "[    0.000000] Linux version 6.1.0\r\nlogin: \n"; got != want {
		t.Errorf("withoutLog() = %q, want %q", got, want)
	}
}
