package e2b

import (
	"encoding/json"
	"net/http"
	"time"

	"wrenn"
)

// envdVersion turns on the features of clients; envd speaks this version's protocol.
const envdVersion = "0.6.13"

// clientID is a field that every client needs and none uses.
const clientID = "wrenn"

// Timeouts of a sandbox that was created without one.
const (
	v1Timeout = 15 * time.Second
	v2Timeout = 5 * time.Minute
)

// newSandbox is the body of a create. Fields that change what a sandbox may do
// and are not built are read in order to be refused.
type newSandbox struct {
	TemplateID string            `json:"templateID"`
	Timeout    *int64            `json:"timeout"` // seconds
	Metadata   map[string]string `json:"metadata"`
	EnvVars    map[string]string `json:"envVars"`
	AutoPause  bool              `json:"autoPause"`
	AutoResume struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`

	AutoPauseMemory     *bool           `json:"autoPauseMemory"`
	AllowInternetAccess *bool           `json:"allow_internet_access"`
	Network             json.RawMessage `json:"network"`
	IAM                 json.RawMessage `json:"iam"`
	MCP                 json.RawMessage `json:"mcp"`
	VolumeMounts        json.RawMessage `json:"volumeMounts"`
}

// refuseUnbuilt returns an error that names the first field that asks for what is not built.
func (n *newSandbox) refuseUnbuilt() error {
	for name, asked := range map[string]bool{
		"autoPauseMemory: false":       n.AutoPauseMemory != nil && !*n.AutoPauseMemory,
		"allow_internet_access: false": n.AllowInternetAccess != nil && !*n.AllowInternetAccess,
		"network":                      given(n.Network), "iam": given(n.IAM), "mcp": given(n.MCP), "volumeMounts": given(n.VolumeMounts),
	} {
		if asked {
			return &failure{http.StatusBadRequest, name + " is not built yet; docs/e2b.md lists what works"}
		}
	}
	return nil
}

// given reports whether a value is more than an empty one.
func given(value json.RawMessage) bool {
	switch string(value) {
	case "", "null", "{}", "[]":
		return false
	}
	return true
}

// sandbox is the answer to a create and a connect.
type sandbox struct {
	TemplateID  string  `json:"templateID"`
	SandboxID   string  `json:"sandboxID"`
	ClientID    string  `json:"clientID"`
	Alias       string  `json:"alias"`
	EnvdVersion string  `json:"envdVersion"`
	Token       string  `json:"envdAccessToken"`
	Domain      *string `json:"domain"` // null: the one that the client is configured with
}

// listed is an entry of a list.
type listed struct {
	TemplateID  string            `json:"templateID"`
	Alias       string            `json:"alias"`
	SandboxID   string            `json:"sandboxID"`
	ClientID    string            `json:"clientID"`
	StartedAt   time.Time         `json:"startedAt"`
	EndAt       time.Time         `json:"endAt"`
	CPUCount    int               `json:"cpuCount"`
	MemoryMB    int               `json:"memoryMB"`
	DiskSizeMB  int               `json:"diskSizeMB"`
	Metadata    map[string]string `json:"metadata"`
	State       string            `json:"state"`
	EnvdVersion string            `json:"envdVersion"`
}

// detail is a sandbox as get shows it.
type detail struct {
	listed
	Token     string    `json:"envdAccessToken"`
	Domain    *string   `json:"domain"`
	Lifecycle lifecycle `json:"lifecycle"`
}

type lifecycle struct {
	AutoResume bool   `json:"autoResume"`
	OnTimeout  string `json:"onTimeout"`
}

// diskSizeMB is the size of every sandbox's disk.
const diskSizeMB = 10 << 10

// noEnd is the end of a sandbox that has none, as far as clients can count.
const noEnd = 100 * 365 * 24 * time.Hour

func listedOf(sb *wrenn.Sandbox) listed {
	metadata := sb.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	return listed{
		TemplateID: sb.Template, Alias: sb.Template, SandboxID: string(sb.ID), ClientID: clientID,
		StartedAt: orCreated(sb.StartedAt, sb), EndAt: endOf(sb),
		CPUCount: sb.VCPUs, MemoryMB: sb.MemoryMiB, DiskSizeMB: diskSizeMB,
		Metadata: metadata, State: stateOf(sb), EnvdVersion: envdVersion,
	}
}

func orCreated(t time.Time, sb *wrenn.Sandbox) time.Time {
	if t.IsZero() {
		return sb.CreatedAt
	}
	return t
}

// endOf is when the sandbox ends if it is not used any more; for a paused one the time of the pause.
func endOf(sb *wrenn.Sandbox) time.Time {
	switch {
	case sb.State == wrenn.Paused:
		return sb.UpdatedAt
	case sb.Timeout == 0:
		return orCreated(sb.LastActiveAt, sb).Add(noEnd)
	}
	return orCreated(sb.LastActiveAt, sb).Add(sb.Timeout)
}

// Clients know two states only.
const (
	stateRunning = "running"
	statePaused  = "paused"
)

func stateOf(sb *wrenn.Sandbox) string {
	if sb.State == wrenn.Paused || sb.State == wrenn.Pausing {
		return statePaused
	}
	return stateRunning
}

// lives reports whether clients see the sandbox.
func lives(sb *wrenn.Sandbox) bool { return !sb.State.Ended() && sb.State != wrenn.Stopping }
