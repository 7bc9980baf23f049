package sandbox

import (
	"time"

	"wrenn"
)

// Status is where a sandbox on this host is in its life.
type Status string

// The states. A sandbox that ended by itself is stopped or failed, and listed
// until Destroy acknowledges it. One that is pausing or restoring runs until it is
// something else, and one that is resuming is paused.
const (
	StatusStarting    Status = "starting"
	StatusRunning     Status = "running"
	StatusPausing     Status = "pausing"
	StatusPaused      Status = "paused"
	StatusResuming    Status = "resuming"
	StatusRestoring   Status = "restoring" // a checkpoint
	StatusStopping    Status = "stopping"
	StatusStopped     Status = "stopped"
	StatusFailed      Status = "failed"
	StatusQuarantined Status = "quarantined"

	statusReady  Status = "ready"  // in stock, see stock.go; in nobody's inventory
	statusUnmade Status = "unmade" // the launch failed; in nobody's inventory
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
	checkpoints []Checkpoint
	head        string
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
		if info := s.Info(); info.Status != statusUnmade && info.Template != buildTemplate && !info.isStock() {
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
	s.life.status, s.life.reason = status, reason
	s.life.active = time.Now()
	s.changed()
}

// changed counts a change and has Run look at the sandbox. The caller holds mu.
func (s *Sandbox) changed() {
	s.life.version = s.m.versions.Add(1)
	s.m.rouse()
}

// refusal is the error of what a sandbox in this status does not allow.
func (i Info) refusal() error {
	switch i.Status {
	case StatusStarting:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is still starting", i.ID)
	case StatusPaused:
		return wrenn.NotWhilePaused(i.ID)
	case StatusPausing, StatusResuming, StatusRestoring:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: try again in a moment", i.ID, i.Status)
	case StatusStopping, statusUnmade:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is being removed", i.ID)
	case StatusStopped, StatusFailed, StatusQuarantined:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: %s", i.ID, i.Status, i.Reason)
	default:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s", i.ID, i.Status)
	}
}
