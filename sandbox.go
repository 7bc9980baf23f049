package wrenn

import (
	"cmp"
	"slices"
	"time"
)

// State is where a sandbox is in its life.
type State string

// The states.
const (
	Pending  State = "pending"  // requested; on no host yet
	Starting State = "starting" // a host creates it
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Stopping State = "stopping"
	Stopped  State = "stopped" // gone, by a user or its timeout
	Failed   State = "failed"  // gone, with a reason; paused again when a user restores a stored checkpoint
)

// next holds the transitions that are allowed. The database, the reconciler and
// the documentation are checked against this table.
var next = map[State][]State{
	Pending:  {Starting, Stopping, Failed},
	Starting: {Running, Paused, Stopping, Failed},          // paused when its timeout ended before its start was written
	Running:  {Pausing, Paused, Stopping, Stopped, Failed}, // paused or stopped directly when its timeout ended on the host
	Pausing:  {Paused, Running, Stopping, Stopped, Failed},
	Paused:   {Resuming, Running, Stopping, Stopped, Failed}, // running directly when its host resumed it
	Resuming: {Running, Paused, Stopping, Stopped, Failed},
	Stopping: {Stopped, Failed},
	Stopped:  nil,
	Failed:   {Paused}, // when a user restores a stored checkpoint
}

// States returns all states in the order in which a sandbox passes them.
func States() []State {
	return []State{Pending, Starting, Running, Pausing, Paused, Resuming, Stopping, Stopped, Failed}
}

// Can reports whether a sandbox may move from s to to.
func (s State) Can(to State) bool { return slices.Contains(next[s], to) }

// Ended reports whether the sandbox is gone: nothing moves it but a user who restores a
// checkpoint of one that failed.
func (s State) Ended() bool { return s == Stopped || s == Failed }

// InTransition reports whether an operation is at work that will move the
// sandbox from s to another state.
func (s State) InTransition() bool {
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
	State    State
	Reason   string   // why it is stopped or failed, for the user
	EndCause EndCause // the same, for programs; set from stopping on
	// Unresponsive is set while it runs and its guest does not answer; nil otherwise.
	Unresponsive *Unresponsive
	// Moving is set for one that ran and was paused to be moved to another host.
	Moving bool
	// MovedKey is what another host has fetched last; an earlier host's copy is void.
	MovedKey string
	// Stored is where a paused one is besides its host; zero when nowhere.
	Stored Stored
	// OnHostLoss is what becomes of it when it runs and its host is lost; "" is FailOnHostLoss.
	OnHostLoss OnHostLoss
	// Newest is the newest of its checkpoints that is stored; zero for none.
	Newest   StoredCheckpoint
	Parent   SandboxID // the sandbox that it was forked from; "" for none
	Metadata map[string]string
	// Requires are labels that its host must have, and a zone; see package scheduler.
	Requires map[string]string
	SandboxSpec
	// Ingress is set for a create alone: a gateway asks for it by itself. A copy has
	// its parent's.
	Ingress Ingress

	CreatedAt    time.Time
	StartedAt    time.Time // zero until it has run
	LastActiveAt time.Time // zero until it has run
	EndsAt       time.Time // of a running one with an Absolute timeout; else of no meaning
	UpdatedAt    time.Time // of the last change of State
	// Version grows with every change; compare-and-set goes by it.
	Version int64
}

// SandboxSpec is what a host needs to know to create a sandbox.
type SandboxSpec struct {
	Template string  // its name
	Build    BuildID // the build of Template to start from; "" for the base
	// BuildKey is where Build is stored for hosts that do not have it; "" is nowhere.
	// Rows of sandboxes do not have it.
	BuildKey string
	Size
	// DiskMiB is the size of its disk; 0 is that of Build. A disk can be larger than
	// the build's, not smaller.
	DiskMiB int
	EndOfLife
	AutoResume bool              // calls that need the sandbox resume it when it is paused
	Network    NetworkPolicy     // what it may reach of the internet
	Env        map[string]string // of every command
	// AccessToken is what callers of the agent in the sandbox must send; "" is none.
	// Rows do not have it. It must not be logged.
	AccessToken string
	Volumes     []VolumeMount
	// Secrets are for the header rules of Network. Rows and journals do not have them.
	Secrets SecretValues
	Team    TeamID // owns what is stored of the sandbox; "" has it not stored
	Epoch   Epoch  // of its placement on its host
	// CheckpointEvery is how often its host makes a checkpoint of it while it is used, by
	// itself; 0 is never.
	CheckpointEvery time.Duration
}

// Settings are what a host follows of a sandbox's settings that can change, besides its
// timeout and its network policy.
type Settings struct {
	OnTimeout       OnTimeout
	AutoResume      bool
	CheckpointEvery time.Duration
}

// Settings returns those of the spec.
func (s *SandboxSpec) Settings() Settings {
	return Settings{OnTimeout: cmp.Or(s.OnTimeout, DestroyOnTimeout), AutoResume: s.AutoResume, CheckpointEvery: s.CheckpointEvery}
}

// OnHostLoss is what becomes of a running sandbox when an operator says that its host is lost.
type OnHostLoss string

// The values of OnHostLoss.
const (
	FailOnHostLoss    OnHostLoss = "fail"
	RestoreOnHostLoss OnHostLoss = "restore" // from its newest stored checkpoint, on another host
)

// StoredCheckpoint is a checkpoint in the snapshot store.
type StoredCheckpoint struct {
	ID     CheckpointID
	Stored Stored
}

// The bounds of SandboxSpec.CheckpointEvery.
const (
	MinCheckpointEvery = time.Minute
	MaxCheckpointEvery = 24 * time.Hour
)

// CheckCheckpointEvery returns an Invalid error unless d can be how often a checkpoint of a
// sandbox is made; 0 is never.
func CheckCheckpointEvery(d time.Duration) error {
	if d != 0 && (d < MinCheckpointEvery || d > MaxCheckpointEvery) {
		return Errorf(Invalid, "a checkpoint is made every %s to %s, not every %s; 0 is never", MinCheckpointEvery, MaxCheckpointEvery, d)
	}
	return nil
}

// Epoch numbers the placements of a sandbox on hosts, from FirstEpoch: the one with the
// highest is the sandbox, and what another host has of it is void. 0 is not known, of
// agents and control planes before epochs.
type Epoch int64

// FirstEpoch is that of a new sandbox.
const FirstEpoch Epoch = 1

// Size is how large a sandbox is. Its JSON form is that of host journals.
type Size struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
}

// OrDefault returns s with its zero fields set to the defaults.
func (s Size) OrDefault() Size {
	return Size{VCPUs: cmp.Or(s.VCPUs, DefaultVCPUs), MemoryMiB: cmp.Or(s.MemoryMiB, DefaultMemoryMiB)}
}

// EndOfLife is when a sandbox ends by itself, and how.
type EndOfLife struct {
	Timeout   time.Duration // without use until OnTimeout happens; 0 is never
	OnTimeout OnTimeout     // "" is DestroyOnTimeout
	// Absolute has Timeout count from when the sandbox began to run or Timeout was
	// set, whichever is later: use does not extend it.
	Absolute bool
}

// OnTimeout is what happens to a sandbox at the end of its timeout.
type OnTimeout string

// The values of OnTimeout.
const (
	DestroyOnTimeout OnTimeout = "destroy"
	PauseOnTimeout   OnTimeout = "pause"
	// PauseDiskOnTimeout pauses without the memory, see PauseOptions.
	PauseDiskOnTimeout OnTimeout = "pause_disk"
)

// Pauses reports whether a sandbox is paused at the end of its timeout.
func (o OnTimeout) Pauses() bool { return o == PauseOnTimeout || o == PauseDiskOnTimeout }

// PauseOptions are how a sandbox is paused. The zero value saves its memory, and
// needs a guest that answers.
type PauseOptions struct {
	// DiskOnly saves the disk alone, from which the sandbox boots when it is resumed.
	// It needs a guest that answers, whatever Guest says.
	DiskOnly bool
	Guest    PauseGuest
	// Hold keeps a sandbox paused until it is resumed by a call: its use does not resume
	// it. Of one that is paused already it does just that.
	Hold bool
	// Durable has the control plane wait until the sandbox is stored; hosts ignore it.
	Durable bool
	// Epoch, if not 0, is that of the sandbox on its host from now on.
	Epoch Epoch
	// SupersededBy, if not 0, is the epoch of a later placement, on another host: the
	// sandbox refuses all calls that name an epoch.
	SupersededBy Epoch
}

// PauseGuest is what a pause does about a guest that does not answer.
type PauseGuest string

// The values of PauseGuest.
const (
	PauseHealthy PauseGuest = ""        // the sandbox is not paused
	PauseIfAble  PauseGuest = "if_able" // its programs and its disk are saved as they stand
	PauseForced  PauseGuest = "forced"  // no guest is asked: all are saved as they stand
)

// Check returns an Invalid error for options that contradict each other.
func (p PauseOptions) Check() error {
	if p.DiskOnly && p.Guest == PauseForced {
		return Errorf(Invalid, "a pause without the memory needs a sandbox that answers, so it cannot be forced")
	}
	return nil
}

// EndCause is why a sandbox ended. The set is closed: the protocol of the hosts, the
// API's document and the database have the same.
type EndCause string

// The causes.
const (
	CauseUnknown       EndCause = ""                    // it lives, or ended under an older version
	CauseUser          EndCause = "user"                // a caller deleted it
	CauseTimeout       EndCause = "timeout"             // it was not used for its timeout
	CausePoweredOff    EndCause = "guest_powered_off"   // or rebooted
	CausePanicked      EndCause = "guest_panicked"      // its kernel did
	CauseGuestMemory   EndCause = "guest_out_of_memory" // its kernel had nothing left to end
	CauseHostMemory    EndCause = "host_out_of_memory"  // the host's kernel ended its machine
	CauseVMM           EndCause = "vmm_crashed"         // its machine ended by itself, or was killed
	CauseHostRestarted EndCause = "host_restarted"      // its machine ended while the host's agent was down
	CauseLost          EndCause = "host_lost"           // its host does not have it any more
	CauseStart         EndCause = "start_failed"        // it never ran
	CauseQuarantined   EndCause = "quarantined"         // its host keeps it for an operator to look at
	CauseInternal      EndCause = "internal"            // a mistake of the platform
)

// EndCauses returns all causes but CauseUnknown.
func EndCauses() []EndCause {
	return []EndCause{
		CauseUser, CauseTimeout, CausePoweredOff, CausePanicked, CauseGuestMemory, CauseHostMemory, CauseVMM,
		CauseHostRestarted, CauseLost, CauseStart, CauseQuarantined, CauseInternal,
	}
}

// Unresponsive is the condition of a running sandbox whose guest does not answer.
type Unresponsive struct {
	Since  time.Time // when it was last heard
	Reason string    // for the user
}

// Refusal returns the error of a call that needs the guest of that sandbox.
func (u Unresponsive) Refusal(id SandboxID) *Error {
	return Errorf(NotResponding, "sandbox %s has not answered since %s: %s; calls work again when it answers, until then it can be deleted, or paused with force",
		id, u.Since.UTC().Format(time.RFC3339), u.Reason)
}

// NotWhilePaused returns the error of a call that a paused sandbox does not allow.
func NotWhilePaused(id SandboxID) *Error {
	return Errorf(FailedPrecondition, "sandbox %s is paused: resume it first, by POST /v1/sandboxes/%[1]s/resume or wrenn sandbox resume %[1]s", id)
}

// ForkSpec is which copies of a sandbox are wanted.
type ForkSpec struct {
	IDs    []SandboxID
	Tokens map[SandboxID]string // the access tokens of the copies' agents
	// Checkpoint is the one that they are copies of; "" is the sandbox as it is now.
	Checkpoint CheckpointID
	Epoch      Epoch // of each
}

// ForkResult is what became of one copy of a sandbox.
type ForkResult struct {
	ID  SandboxID
	Err error // why there is no copy; nil when it runs
}

// Checkpoint is a saved moment of a sandbox that it can be restored to. The
// checkpoints of a sandbox form a tree. The JSON form is that of host journals.
type Checkpoint struct {
	ID        CheckpointID `json:"id"`
	Parent    CheckpointID `json:"parent,omitempty"` // the one that the sandbox continued from; "" for none
	Name      string       `json:"name,omitempty"`   // for people
	CreatedAt time.Time    `json:"created"`
	SizeBytes int64        `json:"bytes"` // on its host's disk, including what it shares with others
	OwnBytes  *int64       `json:"-"`     // what it shares with no other file: its deletion frees that; nil when not measured
	// Stored is where it is in the snapshot store; zero while it is on its host alone.
	Stored Stored `json:"stored,omitzero"`
	// Automatic means that its host made it by itself, see SandboxSpec.CheckpointEvery.
	Automatic bool `json:"automatic,omitempty"`
}

// Checkpoints are the checkpoints of a sandbox.
type Checkpoints struct {
	List      []Checkpoint // oldest first
	Head      CheckpointID // the one that the sandbox continues from; "" for none
	DiskBytes *int64       // what they take together, shared blocks once; nil when not measured
}

// ConsoleQuery is which part of a console is wanted.
type ConsoleQuery struct {
	Follow bool      // also new output, until the sandbox ends
	Since  time.Time // only what was printed after it, to about a second; zero is everything
}

// TeamID names the owner of sandboxes and keys: a UUID.
type TeamID string

// HostID names a machine that runs sandboxes: 1 to 63 of [a-z0-9-].
type HostID string
