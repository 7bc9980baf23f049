package sandbox

import (
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
)

// Shape is how large a sandbox is.
type Shape = wrenn.Size

// Request is what sandbox is wanted.
type Request struct {
	ID wrenn.SandboxID
	// Template is its name. Without a Snapshot only the base exists: wrenn.BaseTemplate or "".
	Template string
	// Shape is that of the Snapshot, by default too; without a Snapshot its zero
	// fields have the defaults of wrenn.Size.
	Shape Shape
	// Timeout is the time without use after which the sandbox ends; 0 is never.
	Timeout time.Duration
	// OnTimeout is what happens then.
	OnTimeout Ending
	// AutoResume lets Use resume the sandbox when it is paused.
	AutoResume bool
	// Env is for every command of the sandbox. Only the guest has it.
	Env map[string]string
	// Snapshot is what the sandbox is made from; empty is the base guest.
	Snapshot string

	parent wrenn.SandboxID // of a fork
}

// Ending is what happens to a sandbox that is not used for its timeout.
type Ending string

// The endings.
const (
	EndStop  Ending = ""      // its machine and its disk are removed
	EndPause Ending = "pause" // see Sandbox.Pause
)

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
	Active     time.Time // of the last use; now while a use lasts
	// Version grows with every change but of Active; comparable within one run of
	// the agent, see Inventory.
	Version uint64
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
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: try again in a moment", i.ID, i.Status)
	case StatusStopping, statusRemoved:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is being removed", i.ID)
	case StatusStopped, StatusFailed, StatusQuarantined:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: %s", i.ID, i.Status, i.Reason)
	default:
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s", i.ID, i.Status)
	}
}
