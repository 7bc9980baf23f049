package vmtest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/envdclient"
)

// printer prints the time in a tight loop, whenever it is another millisecond,
// and what it hears of a restore.
const printer = `
import fcntl, os, signal, time
out = os.open("/dev/shm/times", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def show(text): # not by a file object: a handler may not use one that it interrupts
    os.write(out, (text + "\n").encode())
def told(*_):
    show("told " + open("/run/wrenn/generation").read().split()[0])
signal.signal(signal.SIGUSR1, told)
asked = open(f"/run/wrenn/notify.d/{os.getpid()}", "w")
asked.write("USR1")
asked.flush()
fcntl.flock(asked, fcntl.LOCK_EX)
last = 0
while True:
    now = time.time()
    if abs(now - last) >= 0.001:
        show(f"{now}")
        last = now
`

// restoredIsNew takes a snapshot whose clock is an hour behind, as if it had
// been kept for that long, and restores it twice: no program ever sees an hour that is
// past, and the two share nothing that must be unique.
func (s *suite) restoredIsNew(t *testing.T) {
	d := s.Driver(t)
	origin := s.restore(t, d, s.base)
	g, ok := origin.guest.(envdGuest)
	if !ok {
		t.Log("this guest runs no programs")
		return
	}
	// Only Init corrects this clock.
	must(t, "clock", g.run(within(t), fmt.Sprintf("killall -q chronyd || pkill chronyd || true; date -s @%d", time.Now().Add(-age).Unix())))
	must(t, "printer", g.WriteFile(within(t), "root", "/root/printer", strings.NewReader(printer)))
	must(t, "start", g.run(within(t), "setsid python3 /root/printer </dev/null >/dev/null 2>&1 &"))
	g.waitTimes(t, "the printer prints", func(lines []string) bool { return len(lines) > 100 })

	must(t, "Freeze", g.Freeze(within(t)))
	old := past{lines: g.times(t), until: time.Now().Add(time.Second - age)} // date sets whole seconds
	snap := s.snapshot(t, origin)
	if diff := cmp.Diff(old.lines, g.times(t)); diff != "" {
		t.Errorf("the frozen printer printed (-frozen +now):\n%s", diff)
	}
	must(t, "Thaw", g.Thaw(within(t)))
	g.waitTimes(t, "the printer goes on", func(lines []string) bool { return len(lines) > len(old.lines) })
	must(t, "Stop", origin.Stop(within(t)))

	one, two := s.restoreAsNew(t, snap, old, "vmtest1"), s.restoreAsNew(t, snap, old, "vmtest2")
	for what, id := range one {
		if id == two[what] {
			t.Errorf("two restores share their %s: %s", what, id)
		}
	}
}

// age is how old the snapshot's time is.
const age = time.Hour

// past is what the printer had printed when it was frozen, and the guest's time then.
type past struct {
	lines []string
	until time.Time
}

// restoreAsNew restores snap, which has the past old, with a new identity, and
// returns what must be unique.
func (s *suite) restoreAsNew(t *testing.T, snap snapshot, old past, id string) map[string]string {
	t.Helper()
	b := s.restore(t, s.Driver(t), snap)
	g := b.guest.(envdGuest)
	if diff := cmp.Diff(old.lines, g.times(t)); diff != "" {
		t.Errorf("the printer printed before Init (-frozen +now):\n%s", diff)
	}
	init := envdclient.Init{Identity: &envdclient.Identity{ID: id, StartCounter: 1}}
	began := time.Now()
	must(t, "Init", g.Init(within(t), init))
	t.Logf("Init took %v", time.Since(began))
	lines := g.waitTimes(t, "the restored printer prints", func(lines []string) bool {
		return len(lines) > len(old.lines)+10 && slices.Contains(lines, "told id="+id)
	})
	checkTimes(t, lines[len(old.lines):], old.until, began)

	own := g.own(t)
	if own["host name"] != id {
		t.Errorf("host name %q, want %q", own["host name"], id)
	}
	must(t, "Init again", g.Init(within(t), init))
	if again := g.own(t); again["boot id"] != own["boot id"] || again["machine id"] != own["machine id"] {
		t.Errorf("who was told the same again changed from %v to %v", own, again)
	}
	init.Identity.StartCounter++
	must(t, "Init", g.Init(within(t), init))
	if again := g.own(t); again["boot id"] == own["boot id"] || again["machine id"] != own["machine id"] {
		t.Errorf("a resumed sandbox changed from %v to %v, want another boot id and the same machine id", own, again)
	}
	for script, want := range map[string]string{
		"grep -c boot_id /proc/self/mountinfo": "1",
		// A mount inside /proc must not keep users from making namespaces.
		"su user -c 'unshare -Urpf --mount-proc cat /proc/sys/kernel/pid_max >/dev/null && echo fine' 2>&1": "fine",
		"su user -c 'sudo -n true' 2>&1": "", // it complains about a host name without an address
	} {
		if got, err := g.sh(within(t), script); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", script, got, err, want)
		}
	}
	return own
}

// checkTimes fails when one of the times that were printed after a restore is
// before began, or goes back. The first may have been read before the freeze, until old,
// and printed after it: no clock can help that.
func checkTimes(t *testing.T, lines []string, old, began time.Time) {
	t.Helper()
	lines = slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.HasPrefix(line, "told ") })
	last := began
	for i, line := range lines {
		seconds, err := strconv.ParseFloat(line, 64)
		must(t, "a printed time", err)
		at := time.UnixMicro(int64(seconds * 1e6))
		switch {
		case i == 0 && at.Before(old):
		case at.Before(last.Add(-time.Millisecond)): // what a float and its rounding may be off
			t.Fatalf("time %d after the restore is %v; want %v or later", i, at, last)
		default:
			last = at
		}
	}
}

// own is what a guest must not share with another.
func (g envdGuest) own(t *testing.T) map[string]string {
	t.Helper()
	const script = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; cat /run/wrenn/generation | tr '\\n' ' '; echo; od -An -N16 -tx1 /dev/urandom"
	out, err := g.sh(within(t), script)
	lines := strings.Split(out, "\n")
	if err != nil || len(lines) != 5 {
		t.Fatalf("who the guest is: %q, %v", out, err)
	}
	return map[string]string{"boot id": lines[0], "machine id": lines[1], "host name": lines[2], "generation": lines[3], "randomness": lines[4]}
}

// times are the whole lines that the printer has printed. The agent reads them, so the printer may be frozen.
func (g envdGuest) times(t *testing.T) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	file, err := g.ReadFile(ctx, "root", "/dev/shm/times")
	if err != nil {
		return nil // not there yet
	}
	defer file.Close()
	raw, err := io.ReadAll(file)
	must(t, "read the times", err)
	lines := strings.Split(string(raw), "\n")
	return lines[:len(lines)-1]
}

// waitTimes returns the printer's lines when they are as they should be.
func (g envdGuest) waitTimes(t *testing.T, what string, ok func([]string) bool) []string {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; {
		lines := g.times(t)
		if ok(lines) {
			return lines
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s; %d lines, the last %q", what, len(lines), lines[max(len(lines)-3, 0):])
		}
	}
}
