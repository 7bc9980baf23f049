//go:build root

package sandbox

import (
	"testing"
	"time"

	"wrenn.dev"
)

func wantConsole(t *testing.T, m *Manager, id wrenn.SandboxID, want string, wantMore bool) {
	t.Helper()
	text, more, err := m.Console(id, time.Time{})
	if err != nil || text != want || more != wantMore {
		t.Errorf("Console() = %q, %v, %v, want %q, %v", text, more, err, want, wantMore)
	}
}

func TestConsole(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := create(t, m)
	guest := l.world.Guest(sb.instance.Slot.Namespace())
	must(t, guest.Print("booted\n"))
	wantConsole(t, m, sb.ID(), "booted\n", true)
	must(t, guest.Print("ill\n"))
	must(t, guest.Panic(t.Context()))
	wantStatus(t, sb, StatusFailed, "guest panicked")
	wantConsole(t, m, sb.ID(), "booted\nill\n", false)
	must(t, sb.Destroy(t.Context())) // the control plane has noted the end
	wantConsole(t, m, sb.ID(), "booted\nill\n", false)
	for since, want := range map[time.Time]string{time.Now().Add(-time.Hour): "booted\nill\n", time.Now().Add(time.Hour): ""} {
		if text, _, err := m.Console(sb.ID(), since); text != want || err != nil {
			t.Errorf("Console() since %s = %q, %v, want %q", since, text, err, want)
		}
	}

	destroyed := create(t, m)
	must(t, l.world.Guest(destroyed.instance.Slot.Namespace()).Print("secret"))
	must(t, destroyed.Destroy(t.Context()))
	if text, _, err := m.Console(destroyed.ID(), time.Time{}); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("of one that its owner destroyed: %q, %v", text, err)
	}
	l.wantClean(t, m)
}

// TestConsoleOfTheNextAgent: it reads what an adopted machine says, and what is kept.
func TestConsoleOfTheNextAgent(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	ended, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	must(t, err)
	runs, err := m.Create(t.Context(), wrenn.NewSandboxID(), small)
	must(t, err)
	must(t, l.world.Guest(ended.instance.Slot.Namespace()).Print("the end\n"))
	must(t, l.world.Guest(ended.instance.Slot.Namespace()).Panic(t.Context()))
	wantStatus(t, ended, StatusFailed, "")
	must(t, l.world.Guest(runs.instance.Slot.Namespace()).Print("running\n"))
	m = l.restart(t, m)
	t.Cleanup(m.Close)
	wantConsole(t, m, ended.ID(), "the end\n", false)
	wantConsole(t, m, runs.ID(), "running\n", true)
	must(t, m.DestroyAll(t.Context()))
}
