package firecracker

import "testing"

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
