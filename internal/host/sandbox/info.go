package sandbox

import (
	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/network/egress"
)

// request is a sandbox to make.
type request struct {
	id wrenn.SandboxID
	wrenn.SandboxSpec
	parent wrenn.SandboxID // of a fork
	// authority is that of the parent, whose guest trusts it; nil is none.
	authority *egress.Authority
	snapshot  string // what a machine of the warm pool is restored from
	// maxDiskMiB is how large its disk may be made while it runs, if not 0.
	maxDiskMiB int
	urgent     bool // its turn to start is before that of all that wait
}

// isInternal reports whether the sandbox belongs to no user: its agent gets a token
// that only this host agent knows.
func (r *request) isInternal() bool {
	return r.Template == journal.BuildTemplate || r.Template == journal.PoolTemplate
}

// Verdict is how a sandbox ended that was not destroyed.
type Verdict struct {
	Status Status // stopped or failed
	Reason string
	Cause  wrenn.EndCause
}

// Info is what a sandbox was like at one moment. It is the sandbox as the
// control plane sees it, and its exact status.
type Info struct {
	Status Status
	wrenn.ObservedSandbox
}

// observed are the states of the statuses that an inventory can have.
var observed = map[Status]wrenn.ObservedState{
	StatusStarting:    wrenn.ObservedStarting,
	StatusRunning:     wrenn.ObservedRunning,
	StatusPausing:     wrenn.ObservedRunning, // until it is paused
	StatusRestoring:   wrenn.ObservedRunning,
	StatusResuming:    wrenn.ObservedPaused, // until it runs
	StatusPaused:      wrenn.ObservedPaused,
	StatusStopping:    wrenn.ObservedStopping,
	StatusStopped:     wrenn.ObservedStopped,
	StatusFailed:      wrenn.ObservedFailed,
	StatusQuarantined: wrenn.ObservedQuarantined,
}

// isPooled reports whether it is a machine of the warm pool, and not in
// quarantine: that is shown.
func (i Info) isPooled() bool {
	return i.Template == journal.PoolTemplate && i.Status != StatusQuarantined
}

// refusal returns the error of an operation that a sandbox in this status does
// not allow.
func (i Info) refusal() error {
	switch i.Status {
	case StatusStarting:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is still starting", i.ID)
	case StatusPaused:
		return wrenn.NotWhilePaused(i.ID)
	case StatusPausing, StatusResuming, StatusRestoring:
		return wrenn.Errorf(wrenn.Unavailable, "sandbox %s is %s: try again in a moment", i.ID, i.Status)
	case StatusStopping, statusRemoved:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is being removed", i.ID)
	case StatusStopped, StatusFailed, StatusQuarantined:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: %s", i.ID, i.Status, i.Reason)
	default:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s", i.ID, i.Status)
	}
}
