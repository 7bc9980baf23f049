package guest_test

import (
	"os/signal"
	"syscall"
	"testing"
)

// An agent that was started with a signal ignored, as nohup does, does not hand
// that on.
func TestIgnoredSignalsAreNotInherited(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	e := startEnvd(t)
	r := e.run(t, sh("kill -HUP $$; echo survived"))
	if r.end.GetStatus() != "signal: hangup" || r.stdout.Len() > 0 {
		t.Errorf("the program ended with %q and printed %q", r.end.GetStatus(), &r.stdout)
	}
}
