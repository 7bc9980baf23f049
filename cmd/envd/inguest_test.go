package main

import (
	"strings"
	"testing"

	"wrenn.dev/internal/image"
)

// Every guest is recognized by the command line that the host gives it.
func TestIsGuestLine(t *testing.T) {
	if line := "console=ttyS0 quiet " + strings.Join(image.GuestArgs(), " ") + "\n"; !isGuestLine(line) {
		t.Errorf("a guest's command line is not recognized: %q", line)
	}
	for _, line := range []string{"", "root=/dev/sda1 ro quiet", "init=/sbin/init", "xinit=/usr/local/bin/wrenn-init"} {
		if isGuestLine(line) {
			t.Errorf("%q is taken for a guest's command line", line)
		}
	}
	if inGuest() {
		t.Error("this test is taken for the agent of a guest")
	}
}
