package wrenn

import (
	"cmp"
	"strings"
	"time"
)

// ParseHostID returns s as a host's id, or an Invalid error.
func ParseHostID(s string) (HostID, error) {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if s == "" || len(s) > 63 || strings.Trim(s, alphabet) != "" {
		return "", Errorf(Invalid, "%.64q is not a host id: that is 1 to 63 of a-z, 0-9 and -", s)
	}
	return HostID(s), nil
}

// NewHostID returns a fresh random id (about 103 bits).
func NewHostID() HostID { return HostID(newID("h")) }

const maxLabels, maxLabelText = 32, 63

// CheckLabels returns an Invalid error unless labels can be those of a host.
func CheckLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return Errorf(Invalid, "%d labels are more than %d", len(labels), maxLabels)
	}
	for name, value := range labels {
		if name == "" || !isLabelText(name) || !isLabelText(value) {
			return Errorf(Invalid, "label %.70q=%.70q: use names and values of up to %d of a-z, A-Z, 0-9, '.', '_', '/' and '-'", name, value, maxLabelText)
		}
	}
	return nil
}

// CheckZone returns an Invalid error unless zone can be that of a host; "" is none.
func CheckZone(zone string) error {
	if !isLabelText(zone) {
		return Errorf(Invalid, "zone %.70q: use up to %d of a-z, A-Z, 0-9, '.', '_', '/' and '-'", zone, maxLabelText)
	}
	return nil
}

func isLabelText(s string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-"
	return len(s) <= maxLabelText && strings.Trim(s, allowed) == "" // what is not allowed stops Trim
}

// HostInfo describes a host, as its agent reports it.
type HostInfo struct {
	Version  string
	Instance string // new at each start of its agent
	Driver   string
	Capacity Capacity
	HasStore bool // paused sandboxes are stored where other hosts can fetch them
	// TemplatesRevision changes when the host's builds or where they are stored do; 0 is
	// not known.
	TemplatesRevision uint64
	StoreRounds       StoreRounds
	HostFacts
}

// HostFacts are what the agent's configuration and machine say of a host. The JSON form
// is that of the database.
type HostFacts struct {
	Zone     string            `json:"zone,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Platform Platform          `json:"platform,omitzero"`
}

// Platform is what snapshots depend on. Empty fields are unknown, or of no importance.
type Platform struct {
	Driver    string `json:"driver,omitempty"`    // the VMM's name
	Version   string `json:"version,omitempty"`   // the VMM's
	Processor string `json:"processor,omitempty"` // the host's, if guests see it
}

// String returns the fields that are known.
func (p Platform) String() string {
	return cmp.Or(strings.Join(strings.Fields(p.Driver+" "+p.Version+" "+p.Processor), " "), "unknown")
}

// Capacity is a host's limits, each 0 for none, and how much of each is used.
type Capacity struct {
	Sandboxes, SandboxesUsed int
	MemoryMiB, MemoryMiBUsed int64
	DiskMiB, DiskMiBFree     int64
	// Of the disks of all sandboxes, as they are promised.
	DisksMiB, DisksMiBUsed int64
}

// ObservedState is the state of a sandbox as its host reports it.
type ObservedState string

// The observed states. There are fewer than of State: a host does not know
// what the control plane desires.
const (
	ObservedStarting    ObservedState = "starting"
	ObservedRunning     ObservedState = "running"
	ObservedPaused      ObservedState = "paused"
	ObservedStopping    ObservedState = "stopping"
	ObservedStopped     ObservedState = "stopped"     // ended by a user or its timeout; Reason says why
	ObservedFailed      ObservedState = "failed"      // ended otherwise; Reason says why
	ObservedQuarantined ObservedState = "quarantined" // the host does not know what it is; an operator must look
	ObservedUnknown     ObservedState = "unknown"     // a newer host's state that this program does not know
)

// Ended reports whether nothing of the sandbox runs any more.
func (s ObservedState) Ended() bool { return s == ObservedStopped || s == ObservedFailed }

// ObservedSandbox is a sandbox as its host reports it.
type ObservedSandbox struct {
	ID       SandboxID
	State    ObservedState
	Reason   string // why it is stopped, failed or quarantined, for the user
	Template string
	Size
	DiskMiB int // of its disk; 0 of an agent that does not report it
	EndOfLife
	AutoResume   bool
	Network      NetworkPolicy
	SecretsTag   string // of the secrets that the host has for it
	CreatedAt    time.Time
	LastActiveAt time.Time
	Version      uint64        // grows with every change; comparable within one instance of the agent
	Unresponsive *Unresponsive // its guest does not answer; nil when it does, and when it does not run
	EndCause     EndCause      // why it ended; "" while it lives
	Stored       Stored        // where a paused sandbox is stored besides
	Epoch        Epoch         // of its placement; 0 is not known
	SupersededBy Epoch         // see PauseOptions
	NewestStored *Checkpoint   // the newest of its checkpoints that is stored; nil for none
	Settings     *Settings     // nil of an agent that cannot change them
}

// StoredSandbox is what a host fetches of a sandbox from the snapshot store.
type StoredSandbox struct {
	Team  TeamID
	Key   string // see Stored
	Epoch Epoch  // that it has on the host that fetches it
}

// CheckpointSource is a stored checkpoint that a host makes another sandbox from.
type CheckpointSource struct {
	Sandbox    SandboxID // whose checkpoint it is
	Checkpoint CheckpointID
	Key        string // see Stored
}

// Stored is where the snapshot of a paused sandbox, a checkpoint or a template is in the
// snapshot store. The zero value is nowhere: it is on its host alone.
type Stored struct {
	At  time.Time `json:"at"` // since when
	Key string    `json:"key"`
}

// StoredNow is what was stored at a key just now. The time is as precise as that of rows.
func StoredNow(key string) Stored {
	return Stored{At: time.Now().UTC().Truncate(time.Microsecond), Key: key}
}

// IsTemplate reports whether the key is that of a build of a team.
func (s Stored) IsTemplate(team TeamID, id BuildID) bool {
	return team != "" && strings.HasPrefix(s.Key, "teams/"+string(team)+"/templates/"+string(id)+"/")
}

// IsOf reports whether the key is one of that team's.
func (s Stored) IsOf(team TeamID) bool {
	return team != "" && strings.HasPrefix(s.Key, "teams/"+string(team)+"/snapshots/")
}

// Inventory is every sandbox of a host at one moment.
type Inventory struct {
	Host      HostID
	Instance  string // of the host's agent, as in HostInfo
	TakenAt   time.Time
	Sandboxes []ObservedSandbox
}

// HostStatus says what a host may be used for.
type HostStatus string

// The statuses of a host. All but HostRemoved and HostLost are asked for their sandboxes.
const (
	HostActive   HostStatus = "active"
	HostCordoned HostStatus = "cordoned" // keeps its sandboxes, and gets no new ones
	HostDraining HostStatus = "draining" // cordoned, and its sandboxes are moved away
	HostRemoved  HostStatus = "removed"  // was empty, and is not used any more
	HostLost     HostStatus = "lost"     // an operator says that it does not come back
)

// HostRecord is a host as the control plane stores it.
type HostRecord struct {
	ID   HostID
	Name string // for people; "" is none
	URL  string // where the control plane reaches it now; never its identity
	Zone string // hosts of one zone fail together; "" is none
	// Labels are what a sandbox may require of its host.
	Labels    map[string]string
	Status    HostStatus
	Joined    bool // by a token; otherwise the configuration of a control plane has it
	Info      HostInfo
	CreatedAt time.Time
	SeenAt    time.Time // when it last answered; zero if it never did

	// Serials are of the certificates that a host that joined may use, in hexadecimal
	// digits: the newest, and the one before or "". CertificateUntil is the newest's end.
	Serials          [2]string
	CertificateUntil time.Time
}

// UnknownSandbox is a sandbox on a host that no row explains, or that the host
// has in quarantine. Nothing touches it until an operator decides.
type UnknownSandbox struct {
	Host        HostID
	ID          SandboxID // or what the host calls it
	State       ObservedState
	Reason      string // the host's, of one in quarantine
	FirstSeenAt time.Time
	LastSeenAt  time.Time
}
