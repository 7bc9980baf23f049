//go:build root

package sandbox

import (
	"context"
	"testing"

	"wrenn.dev"
)

// worksFrom runs Work, and returns the snapshot from which its guest was restored, "" if
// it booted.
func worksFrom(t *testing.T, m *Manager, r Recipe) (source string) {
	t.Helper()
	must(t, m.Work(t.Context(), r, func(_ context.Context, s *Sandbox) error {
		source = s.instance.Record.Source
		return nil
	}))
	return source
}

func TestWorkRestoresWhatHasBooted(t *testing.T) {
	m := newLab(t).open(t)
	guest := m.BaseGuest()
	r := Recipe{Size: poolable.Size, Guest: &guest, Booted: "steps-1"}
	for i, want := range []string{"", "steps-1", "steps-1"} {
		if got := worksFrom(t, m, r); got != want {
			t.Errorf("the guest of work %d came from %q, want %q", i, got, want)
		}
	}
	must(t, m.RemoveSnapshot(t.Context(), "steps-1", ""))
	if got := worksFrom(t, m, r); got != "" {
		t.Errorf("after its removal the guest came from %q", got)
	}
	r.Booted = ""
	if got := worksFrom(t, m, r); got != "" {
		t.Errorf("without a name the guest came from %q", got)
	}
}

func TestWorkOfTheBaseGuest(t *testing.T) {
	m := newLab(t).open(t)
	r := Recipe{Size: wrenn.Size{VCPUs: 1, MemoryMiB: 384}}
	if got := worksFrom(t, m, r); got != "" {
		t.Errorf("without a snapshot of the size the guest came from %q", got)
	}
	must(t, m.Warm(t.Context(), r.Size))
	if got, want := worksFrom(t, m, r), m.baseName(r.Size); got != want {
		t.Errorf("the guest came from %q, want %q", got, want)
	}
}
