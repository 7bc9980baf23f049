//go:build root

package sandbox

import (
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestContinueFromACheckpoint: another host makes the sandbox from a stored checkpoint alone.
func TestContinueFromACheckpoint(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	m := a.open(t)
	stop := running(t, m)
	spec.Epoch, spec.Timeout, spec.AutoResume = 1, time.Hour, true
	sb := ensure(t, m, spec)
	must(t, a.mark(t.Context(), sb, 'x'))
	made, err := sb.Checkpoint(t.Context(), "", "before")
	must(t, err)
	must(t, a.mark(t.Context(), sb, 'y'))
	testkit.WaitUntil(t, "the checkpoint is stored", func() bool { return sb.Info().NewestStored != nil })
	newest := *sb.Info().NewestStored
	if newest.ID != made.ID || newest.Stored.Key == "" {
		t.Fatalf("%+v", newest)
	}
	stop()

	b, _ := storedLab(t, s)
	other := b.open(t)
	got, err := other.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: newest.Stored.Key, Epoch: 2})
	must(t, err)
	destroyLater(t, got)
	all := got.Checkpoints()
	list, head := all.List, all.Head
	if len(list) != 1 || head != made.ID || list[0].Stored.Key != newest.Stored.Key || list[0].Name != "before" {
		t.Errorf("checkpoints %+v, head %s", list, head)
	}
	info := got.Info()
	if info.Epoch != 2 || info.Timeout != time.Hour || !info.AutoResume || info.NewestStored == nil {
		t.Errorf("%+v", info)
	}
	must(t, got.Resume(WithEpoch(t.Context(), 2)))
	b.wantMark(t, got, 'x')
	must(t, got.RestoreCheckpoint(t.Context(), made.ID))
	b.wantMark(t, got, 'x')
}

// TestCheckpointsByTheClock: a sandbox that is used gets checkpoints, of which the newest are
// kept beside those of its users; one that is not used gets none.
func TestCheckpointsByTheClock(t *testing.T) {
	l, spec := storedLab(t, newObjects(t))
	m := l.open(t)
	idle := ensure(t, m, spec)
	spec.CheckpointEvery = 20 * time.Millisecond
	sb := ensure(t, m, spec)
	users, err := sb.Checkpoint(t.Context(), "", "mine")
	must(t, err)
	running(t, m)
	seen := map[wrenn.CheckpointID]bool{}
	testkit.WaitUntil(t, "there were four automatic checkpoints", func() bool {
		sb.Touch()
		list := sb.Checkpoints().List
		automatic := 0
		for _, c := range list {
			if c.Automatic {
				seen[c.ID] = true
				automatic++
			}
		}
		if list[0].ID != users.ID || automatic > keptAutomatic+2 { // one that is made, and the newest stored
			t.Fatalf("%+v", list)
		}
		return len(seen) >= 4
	})
	testkit.WaitUntil(t, "the newest is stored, and the older ones are gone", func() bool {
		list := sb.Checkpoints().List
		newest := sb.Info().NewestStored
		return newest != nil && newest.Automatic && len(list) <= 1+keptAutomatic+1
	})
	if list := idle.Checkpoints().List; len(list) != 0 {
		t.Errorf("a sandbox without the setting has %+v", list)
	}
}

// TestNoCheckpointsByTheClock are sandboxes that get none now.
func TestNoCheckpointsByTheClock(t *testing.T) {
	l, spec := storedLab(t, newObjects(t))
	m := l.open(t)
	spec.CheckpointEvery = time.Minute
	sb := ensure(t, m, spec)
	at, ok := sb.checkpointDue(time.Time{})
	if !ok || at.Before(sb.Info().CreatedAt.Add(time.Minute)) {
		t.Errorf("due at %v, %v", at, ok)
	}
	tried := time.Now().Add(time.Hour)
	if at, ok = sb.checkpointDue(tried); !ok || at.Before(tried.Add(time.Minute)) {
		t.Errorf("after one failed: due at %v, %v", at, ok)
	}
	locked, err := sb.lock(t.Context(), StatusRunning)
	must(t, err)
	_, err = locked.checkpoint(t.Context(), wrenn.Checkpoint{ID: wrenn.NewCheckpointID(), Automatic: true})
	locked.unlock()
	must(t, err)
	if _, ok := sb.checkpointDue(time.Time{}); ok {
		t.Error("it was not used since its checkpoint")
	}
	sb.Touch()
	if _, ok := sb.checkpointDue(time.Time{}); !ok {
		t.Error("it was used since its checkpoint")
	}
	must(t, sb.Pause(t.Context()))
	if _, ok := sb.checkpointDue(time.Time{}); ok {
		t.Error("it is paused")
	}
}

// TestSettingsThatChange are followed at once, by copies as well, and by the next agent.
func TestSettingsThatChange(t *testing.T) {
	l, spec := storedLab(t, newObjects(t))
	l.cfg.Adopt = true
	m := l.open(t)
	spec.Epoch = 1
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec)
	must(t, err)
	if _, due := sb.checkpointDue(time.Time{}); due {
		t.Error("a checkpoint is due, although none was asked for")
	}
	want := wrenn.Settings{OnTimeout: wrenn.PauseOnTimeout, AutoResume: true, CheckpointEvery: time.Minute}
	must(t, sb.SetSettings(t.Context(), want))
	sb.Touch()
	if _, due := sb.checkpointDue(time.Time{}); !due {
		t.Error("no checkpoint is due")
	}
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, err)
	must(t, copies[0].Err)
	must(t, sb.Pause(t.Context()))
	must(t, sb.SetSettings(t.Context(), want))
	release, err := sb.Use(t.Context()) // resumes it
	must(t, err)
	release()
	testkit.WantCode(t, sb.SetSettings(WithEpoch(t.Context(), 9), wrenn.Settings{}), wrenn.Unavailable)
	m.Close()
	l.crash(t)
	m = l.open(t)
	t.Cleanup(m.Close)
	for _, id := range []wrenn.SandboxID{sb.ID(), copies[0].ID} {
		got, err := m.Get(id)
		must(t, err)
		destroyLater(t, got)
		if info := got.Info(); *info.Settings != want || info.OnTimeout != want.OnTimeout || !info.AutoResume {
			t.Errorf("%+v", info)
		}
	}
}
