package wrenn

import (
	"strings"
	"time"
)

// ParseHostID returns s as a host's id, or an Invalid error.
func ParseHostID(s string) (HostID, error) {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if s == "" || len(s) > 63 || strings.Trim(s, alphabet) != "" {
		return "", Errorf(Invalid, "%.64q is not a host id: it is 1 to 63 of a-z, 0-9 and -", s)
	}
	return HostID(s), nil
}

// HostInfo is what a host says about itself.
type HostInfo struct {
	Version  string
	Instance string // new at each start of its agent
	Driver   string
	Capacity Capacity
}

// Capacity is what a host's limits allow, 0 where there is no limit, and what is taken.
type Capacity struct {
	Sandboxes, SandboxesUsed int
	MemoryMB, MemoryMBUsed   int64
	DiskMB, DiskMBFree       int64
}

// SeenState is what a host sees of a sandbox.
type SeenState string

// What a host may see. It is less than State: a host knows no wishes.
const (
	SeenStarting    SeenState = "starting"
	SeenRunning     SeenState = "running"
	SeenPaused      SeenState = "paused"
	SeenStopping    SeenState = "stopping"
	SeenStopped     SeenState = "stopped"     // it ended as somebody or its time wanted; Reason says why
	SeenFailed      SeenState = "failed"      // it ended otherwise; Reason says why
	SeenQuarantined SeenState = "quarantined" // the host does not know what it is; a person must look
	SeenUnknown     SeenState = "unknown"     // a word this program does not know: a newer host's
)

// Ended says that nothing of the sandbox runs any more.
func (s SeenState) Ended() bool { return s == SeenStopped || s == SeenFailed }

// SeenSandbox is a sandbox as its host sees it.
type SeenSandbox struct {
	ID           SandboxID
	State        SeenState
	Reason       string
	Template     string
	VCPUs        int
	MemoryMB     int
	Timeout      time.Duration // without use until it is destroyed; 0 is never
	CreatedAt    time.Time
	LastActiveAt time.Time
	Version      uint64 // grows with every change, within one instance of the agent
}

// Inventory is everything that a host has at one moment.
type Inventory struct {
	Host      HostID
	Instance  string
	Sandboxes []SeenSandbox
}

// HostRecord is what the control plane keeps of a host.
type HostRecord struct {
	ID     HostID
	URL    string
	Info   HostInfo
	SeenAt time.Time // when it answered last; zero if it never did
}

// UnknownSandbox is something on a host that no row explains, or that the host
// has in quarantine. It is left alone until a person decides.
type UnknownSandbox struct {
	Host        HostID
	ID          SandboxID // or what the host calls it
	State       SeenState
	Reason      string // the host's, of what is in quarantine
	FirstSeenAt time.Time
	LastSeenAt  time.Time
}
