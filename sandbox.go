package wrenn

import (
	"slices"
	"time"
)

// State is where a sandbox is in its life.
type State string

// The states.
const (
	Pending  State = "pending"  // asked for; no host has heard of it
	Starting State = "starting" // a host makes it
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Stopping State = "stopping"
	Stopped  State = "stopped" // gone, because somebody or its time wanted so
	Failed   State = "failed"  // gone, with a reason
)

// next holds the moves that are allowed. The database, the reconciler and the
// documentation are checked against this table.
var next = map[State][]State{
	Pending:  {Starting, Stopping, Failed},
	Starting: {Running, Paused, Stopping, Failed},          // paused when its time was up before its start was written
	Running:  {Pausing, Paused, Stopping, Stopped, Failed}, // paused or stopped at once when its time ran out on the host
	Pausing:  {Paused, Running, Stopping, Stopped, Failed},
	Paused:   {Resuming, Running, Stopping, Stopped, Failed}, // running at once when its host woke it
	Resuming: {Running, Paused, Stopping, Stopped, Failed},
	Stopping: {Stopped, Failed},
	Stopped:  nil,
	Failed:   nil,
}

// States returns all of them, in the order of a life.
func States() []State {
	return []State{Pending, Starting, Running, Pausing, Paused, Resuming, Stopping, Stopped, Failed}
}

// Can says whether a sandbox may move from s to to.
func (s State) Can(to State) bool { return slices.Contains(next[s], to) }

// Ended says that nothing comes after s.
func (s State) Ended() bool { return s == Stopped || s == Failed }

// Between says that somebody works to bring a sandbox from s to another state.
func (s State) Between() bool {
	switch s {
	case Pending, Starting, Pausing, Resuming, Stopping:
		return true
	}
	return false
}

// Sandbox is a user's machine as the control plane knows it.
type Sandbox struct {
	ID       SandboxID
	Team     TeamID
	Host     HostID // "" until one was picked
	Template string
	// Generation is that of the template that it was made from; "" for the base.
	Generation GenerationID
	State      State
	Reason     string // why it is stopped or failed, for the user
	VCPUs      int
	MemoryMB   int
	Timeout    time.Duration // without use until OnTimeout happens; 0 is never
	// OnTimeout is what happens then.
	OnTimeout OnTimeout
	// AutoResume has whoever uses it while it is paused resume it.
	AutoResume bool
	// Parent is the sandbox that it is a copy of; "" for none.
	Parent   SandboxID
	Metadata map[string]string
	Env      map[string]string

	CreatedAt    time.Time
	StartedAt    time.Time // zero until it ran
	LastActiveAt time.Time // zero until it ran
	UpdatedAt    time.Time // of the last change of State
	// Version grows with every change; compare-and-set goes by it.
	Version int64
}

// OnTimeout is what happens to a sandbox that is not used for its timeout.
type OnTimeout string

// The endings.
const (
	DestroyOnTimeout OnTimeout = "destroy"
	PauseOnTimeout   OnTimeout = "pause"
)

// ErrPaused is the refusal of what a paused sandbox does not do.
func ErrPaused(id SandboxID) *Error {
	return Errorf(FailedPrecondition, "sandbox %s is paused: resume it first, by POST /v1/sandboxes/%[1]s/resume or wrenn sandbox resume %[1]s", id)
}

// Checkpoint is a moment in the life of a sandbox that it can go back to.
// Those of a sandbox form a tree: each goes on from its parent.
type Checkpoint struct {
	ID        CheckpointID
	Parent    CheckpointID // "" for none
	Name      string       // for people
	CreatedAt time.Time
	SizeBytes int64 // on its host's disk, what it shares with others included
}

// TeamID names who owns sandboxes and keys: a UUID.
type TeamID string

// HostID names a machine that runs sandboxes: 1 to 63 of [a-z0-9-].
type HostID string
