//go:build root

package sandbox

import (
	"os"
	"testing"

	"wrenn.dev"
)

// disked returns the request for a sandbox of the template with a disk of that many MiB.
func disked(build wrenn.BuildID, mib int) wrenn.SandboxSpec {
	return wrenn.SandboxSpec{Template: "base", Size: small, Build: build, DiskMiB: mib}
}

func wantDisk(t *testing.T, sb *Sandbox, mib int) {
	t.Helper()
	info, err := os.Stat(sb.instance.Disk())
	must(t, err)
	if got := int(info.Size() >> 20); got != mib || sb.Info().DiskMiB != mib {
		t.Errorf("the disk has %d MiB and the sandbox reports %d, want %d", got, sb.Info().DiskMiB, mib)
	}
}

// A disk has the size that its sandbox was created with, whatever the sandbox was made
// from, until its end.
func TestDisksHaveTheirSize(t *testing.T) {
	l := newLab(t)
	l.network.Max = 4
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, disked("", 8))
	wantDisk(t, sb, 8)
	must(t, sb.Snapshot(t.Context(), "template"))
	must(t, sb.Pause(t.Context()))
	must(t, sb.Resume(t.Context()))
	wantDisk(t, sb, 8)
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, err)
	must(t, copies[0].Err)
	destroyLater(t, copies[0].Sandbox)
	wantDisk(t, copies[0].Sandbox, 8)

	wantDisk(t, ensure(t, m, disked("template", 0)), 8)
	wantDisk(t, ensure(t, m, disked("template", 24)), 24)
	_, err = m.Ensure(t.Context(), wrenn.NewSandboxID(), disked("template", 4))
	if wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("a disk that is smaller than the template's: %v, want Invalid", err)
	}
}

// A machine of the warm pool has a disk of the template's size.
func TestASandboxWithALargerDiskLeavesThePool(t *testing.T) {
	l := newLab(t)
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	spec := poolable
	spec.DiskMiB = 8
	sb := ensure(t, m, spec)
	wantHits(t, m, 0, 0)
	wantDisk(t, sb, 8)
}

func TestTheLimitOfDisks(t *testing.T) {
	l := newLab(t)
	l.network.Max = 4
	l.cfg.Limits.DisksMiB = 20
	m := l.open(t)
	t.Cleanup(m.Close)
	sb := ensure(t, m, disked("", 12))
	if c, err := m.Capacity(); err != nil || c.DisksMiB != 20 || c.DisksMiBUsed != 12 {
		t.Errorf("capacity: %+v, %v", c, err)
	}
	must(t, sb.Pause(t.Context())) // it keeps its disk
	_, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), disked("", 9))
	if wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("more than the limit: %v, want Exhausted", err)
	}
	ensure(t, m, disked("", 8))
}
