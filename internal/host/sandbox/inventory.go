package sandbox

import (
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
)

// life is what changes in the life of a sandbox.
type life struct {
	status  Status
	reason  string // why it is stopped, failed or quarantined
	version uint64
	created time.Time
	active  time.Time // when it was last used
	timeout time.Duration
	uses    int       // operations in flight
	retry   time.Time // when to try again what could not be ended or removed; zero when there is nothing
	stuck   time.Time // when to try again to let a machine run that stands still; zero when there is none
	patient time.Time // not before then is the sandbox ended for lack of use

	needed      []string // snapshots that are not to be collected
	checkpoints []wrenn.Checkpoint
	head        wrenn.CheckpointID
}

// Info is what a sandbox was like at one moment.
type Info struct {
	ID       wrenn.SandboxID
	Status   Status
	Reason   string // for people; set when stopped, failed or quarantined
	Template string
	Shape    Shape
	Timeout  time.Duration
	// OnTimeout and AutoResume are as in the Request.
	OnTimeout  Ending
	AutoResume bool
	Created    time.Time
	Active     time.Time // of the last use, and now while there is one
	// Version grows with every change but of Active; comparable within one instance.
	Version uint64
}

// Inventory is everything on this host at one moment.
type Inventory struct {
	Instance  string // new with each Open
	TakenAt   time.Time
	Sandboxes []Info // in the order of their ids
}

// Inventory lists all sandboxes, but the stock and those that templates are being
// made of: what is, not what changed.
func (m *Manager) Inventory() Inventory {
	inv := Inventory{Instance: m.instance, TakenAt: time.Now()}
	for _, s := range m.all() {
		if info := s.Info(); info.Status != statusRemoved && info.Template != journal.BuildTemplate && !info.isStock() {
			inv.Sandboxes = append(inv.Sandboxes, info)
		}
	}
	return inv
}

// Instance names this run of the agent; it is new with each Open.
func (m *Manager) Instance() string { return m.instance }

// Info says what the sandbox is like now.
func (s *Sandbox) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := Info{
		ID: s.id, Status: s.life.status, Reason: s.life.reason, Template: s.request.Template, Shape: s.request.Shape,
		Timeout: s.life.timeout, OnTimeout: s.request.OnTimeout, AutoResume: s.request.AutoResume, Created: s.life.created, Active: s.life.active, Version: s.life.version,
	}
	if s.life.uses > 0 {
		info.Active = time.Now()
	}
	return info
}

// set changes the status.
func (s *Sandbox) set(status Status, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.change(status, reason)
	s.life.active = time.Now()
	s.changed()
}

// change changes the status alone.
func (l *life) change(status Status, reason string) {
	l.status.mustChange(status)
	l.status, l.reason = status, reason
}

// changed counts a change and has Run look at the sandbox. The caller holds mu.
func (s *Sandbox) changed() {
	s.life.version = s.m.versions.Add(1)
	s.m.rouse()
}
