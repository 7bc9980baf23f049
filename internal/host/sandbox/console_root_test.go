//go:build root

package sandbox

import (
	"testing"

	"wrenn.dev"
)

func wantConsole(t *testing.T, m *Manager, id wrenn.SandboxID, want string, wantMore bool) {
	t.Helper()
	text, more, err := m.Console(id)
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

	destroyed := create(t, m)
	must(t, l.world.Guest(destroyed.instance.Slot.Namespace()).Print("secret"))
	must(t, destroyed.Destroy(t.Context()))
	if text, _, err := m.Console(destroyed.ID()); wrenn.CodeOf(err) != wrenn.NotFound {
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
