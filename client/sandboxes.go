package client

import (
	"context"
	"iter"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// State is the state of a sandbox.
type State string

// The states. Stopped and Failed are final, but for RestoreCheckpoint of one that failed;
// Sandbox.Reason says why.
const (
	Pending  State = "pending"
	Starting State = "starting"
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Stopping State = "stopping"
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Never is the timeout of a sandbox that has none.
const Never time.Duration = -1

// Sandbox is a machine.
type Sandbox struct {
	ID           string        `json:"id"`
	State        State         `json:"status"`
	Reason       string        `json:"reason,omitempty"`       // why it is stopped or failed
	EndCause     EndCause      `json:"end_cause,omitempty"`    // the same for programs, from stopping on
	Unresponsive *Unresponsive `json:"unresponsive,omitempty"` // set while it runs and does not answer
	StoredAt     time.Time     `json:"stored_at,omitzero"`     // set while it is paused and in the snapshot store as well: since when
	Template     string        `json:"template"`
	VCPUs        int           `json:"vcpus"`
	MemoryMB     int           `json:"memory_mb"`
	DiskMB       int           `json:"disk_mb"`
	TimeoutSec   int64         `json:"timeout_sec"` // idle time until OnTimeout happens; 0 means never
	OnTimeout    OnTimeout     `json:"on_timeout"`
	AutoResume   bool          `json:"auto_resume"` // using it while it is paused resumes it
	OnHostLoss   OnHostLoss    `json:"on_host_loss,omitempty"`
	// CheckpointEverySec is how often a checkpoint is made by itself; 0 means never.
	CheckpointEverySec int64 `json:"checkpoint_every_sec,omitempty"`
	// CheckpointStoredAt is when the newest checkpoint was stored, from which OnHostLoss restores it.
	CheckpointStoredAt time.Time         `json:"checkpoint_stored_at,omitzero"`
	Network            *NetworkPolicy    `json:"network,omitempty"` // what it may reach; nil is the whole internet
	Ports              *Ports            `json:"ports,omitempty"`   // how its ports are reached by HTTP; nil in lists, of copies, and after its end
	Volumes            []VolumeMount     `json:"volumes,omitempty"`
	Requires           map[string]string `json:"requires,omitempty"`  // labels that its host must have
	ParentID           string            `json:"parent_id,omitempty"` // the sandbox that this one was forked from; "" for none
	Metadata           map[string]string `json:"metadata"`
	CreatedAt          time.Time         `json:"created_at"`
	StartedAt          time.Time         `json:"started_at,omitzero"`     // zero until it ran
	LastActiveAt       time.Time         `json:"last_active_at,omitzero"` // zero until it ran
	EndsAt             time.Time         `json:"ends_at,omitzero"`        // set if the timeout counts whether it is used or not: when it happens
	UpdatedAt          time.Time         `json:"last_updated"`            // when State last changed
}

// OnHostLoss is what becomes of a running sandbox when an operator says that its host is lost.
type OnHostLoss string

// The values of OnHostLoss.
const (
	FailOnHostLoss    OnHostLoss = "fail"
	RestoreOnHostLoss OnHostLoss = "restore" // it continues on another host from its newest checkpoint in the snapshot store
)

// EndCause is why a sandbox ended.
type EndCause string

// The causes.
const (
	CauseUser          EndCause = "user"                // it was deleted
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

// Unresponsive is the condition of a running sandbox that does not answer. Calls that
// need it fail at once with NotResponding, until it answers again; DeleteSandbox and
// ForcePauseSandbox work.
type Unresponsive struct {
	Since  time.Time `json:"since"` // when it last answered
	Reason string    `json:"reason"`
}

// CreateSandbox describes a new sandbox. Zero values mean the server's defaults.
type CreateSandbox struct {
	Template string
	VCPUs    int
	MemoryMB int
	DiskMB   int // the size of the disk, at least that of the template
	// Timeout is the idle time after which OnTimeout happens, in whole seconds,
	// rounded up; 0 means the server's default, Never means no timeout.
	Timeout   time.Duration
	OnTimeout OnTimeout // "" means DestroyOnTimeout
	// AutoResume makes commands, streams, files and checkpoints resume the
	// sandbox when it is paused; without it they fail.
	AutoResume bool
	OnHostLoss OnHostLoss // "" means FailOnHostLoss
	// CheckpointEvery is how often a checkpoint is made while it is used, in whole seconds,
	// rounded up; 0 means never.
	CheckpointEvery time.Duration
	Metadata        map[string]string
	Env             map[string]string // environment variables of every command in the sandbox
	Network         *NetworkPolicy    // what it may reach; nil is the whole internet
	Ports           *SetPorts         // who reaches its ports by HTTP, and how; nil is everyone who knows its id
	Volumes         []VolumeMount     // those that it mounts
	// Requires are labels that its host must have; zone asks for a zone.
	Requires map[string]string
}

type createBody struct {
	Template           string            `json:"template,omitempty"`
	VCPUs              int               `json:"vcpus,omitempty"`
	MemoryMB           int               `json:"memory_mb,omitempty"`
	DiskMB             int               `json:"disk_mb,omitempty"`
	TimeoutSec         *int64            `json:"timeout_sec,omitempty"`
	OnTimeout          OnTimeout         `json:"on_timeout,omitempty"`
	AutoResume         bool              `json:"auto_resume,omitempty"`
	OnHostLoss         OnHostLoss        `json:"on_host_loss,omitempty"`
	CheckpointEverySec int64             `json:"checkpoint_every_sec,omitempty"`
	Metadata           map[string]string `json:"metadata,omitempty"`
	Env                map[string]string `json:"env,omitempty"`
	Network            *NetworkPolicy    `json:"network,omitempty"`
	Ports              *SetPorts         `json:"ports,omitempty"`
	Volumes            []VolumeMount     `json:"volumes,omitempty"`
	Requires           map[string]string `json:"requires,omitempty"`
}

// seconds converts a timeout for the API. It rounds up, so that the timeout is never shorter than requested.
func seconds(d time.Duration) int64 {
	if d < 0 {
		return 0
	}
	return int64(math.Ceil(d.Seconds()))
}

// CreateSandbox creates a sandbox and returns when it runs.
func (c *Client) CreateSandbox(ctx context.Context, s CreateSandbox) (*Sandbox, error) {
	body := createBody{
		Template: s.Template, VCPUs: s.VCPUs, MemoryMB: s.MemoryMB, DiskMB: s.DiskMB, OnTimeout: s.OnTimeout, AutoResume: s.AutoResume, Metadata: s.Metadata, Env: s.Env,
		Network: s.Network, Ports: s.Ports, Volumes: s.Volumes, Requires: s.Requires, OnHostLoss: s.OnHostLoss, CheckpointEverySec: seconds(s.CheckpointEvery),
	}
	if s.Timeout != 0 {
		body.TimeoutSec = new(seconds(s.Timeout))
	}
	return c.sandbox(ctx, request{method: http.MethodPost, path: "/v1/sandboxes", body: body})
}

func (c *Client) sandbox(ctx context.Context, r request) (*Sandbox, error) {
	out := &Sandbox{}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

func sandboxPath(id, rest string) string { return "/v1/sandboxes/" + url.PathEscape(id) + rest }

// Sandbox returns the sandbox with that id, also after it ended.
func (c *Client) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodGet, path: sandboxPath(id, "")})
}

// DeleteSandbox destroys a sandbox. Twice is allowed.
func (c *Client) DeleteSandbox(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: sandboxPath(id, "")}, nil)
}

// PauseSandbox writes a running sandbox to its host's disk and returns when its
// memory is free. Pausing a paused sandbox changes nothing.
func (c *Client) PauseSandbox(ctx context.Context, id string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/pause")})
}

// ForcePauseSandbox is PauseSandbox without the help of the sandbox, for one that does
// not answer: its programs and its disk are saved as they stand. ResumeSandbox still
// needs its agent to answer.
func (c *Client) ForcePauseSandbox(ctx context.Context, id string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/pause"), query: url.Values{"force": {"true"}}})
}

// PauseSandboxDisk is PauseSandbox without the memory: it is quick and takes little
// space, and when it is resumed the sandbox boots, without the programs that ran.
func (c *Client) PauseSandboxDisk(ctx context.Context, id string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/pause"), query: url.Values{"disk_only": {"true"}}})
}

// PauseOptions are how PauseSandboxBy pauses; the zero value is PauseSandbox.
type PauseOptions struct {
	Force    bool // see ForcePauseSandbox
	DiskOnly bool // see PauseSandboxDisk
	Durable  bool // waits until the sandbox is in the snapshot store of its host
}

// PauseSandboxBy is PauseSandbox as the options say. When a durable one fails the sandbox
// may be paused.
func (c *Client) PauseSandboxBy(ctx context.Context, id string, options PauseOptions) (*Sandbox, error) {
	query := url.Values{}
	for name, set := range map[string]bool{"force": options.Force, "disk_only": options.DiskOnly, "durable": options.Durable} {
		if set {
			query.Set(name, "true")
		}
	}
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/pause"), query: query})
}

// BootSandbox is ResumeSandbox by a boot from the disk, although the memory was saved.
// Programs, and what they have not written, are lost.
func (c *Client) BootSandbox(ctx context.Context, id string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/resume"), query: url.Values{"boot": {"true"}}})
}

// ResumeSandbox resumes a paused sandbox, with its programs and their memory, and
// returns when it runs. Resuming a running sandbox changes nothing.
func (c *Client) ResumeSandbox(ctx context.Context, id string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/resume")})
}

// SetTimeout sets the idle time after which OnTimeout happens, counted from now;
// Never means no timeout.
func (c *Client) SetTimeout(ctx context.Context, id string, d time.Duration) (*Sandbox, error) {
	if d == 0 {
		return nil, &Error{Code: InvalidRequest, Message: "invalid timeout 0: delete the sandbox, or use client.Never"}
	}
	body := map[string]int64{"timeout_sec": seconds(d)}
	return c.sandbox(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/timeout"), body: body})
}

// ChangeSandbox is what changes of the settings of a sandbox. Zero values stay as they are.
type ChangeSandbox struct {
	OnTimeout  OnTimeout
	AutoResume *bool
	OnHostLoss OnHostLoss
	// CheckpointEvery is how often a checkpoint is made by itself; 0 is never.
	CheckpointEvery *time.Duration
}

// ChangeSandbox changes settings of a running or paused sandbox. A host that does not answer
// follows when it does.
func (c *Client) ChangeSandbox(ctx context.Context, id string, change ChangeSandbox) (*Sandbox, error) {
	body := struct {
		OnTimeout          OnTimeout  `json:"on_timeout,omitempty"`
		AutoResume         *bool      `json:"auto_resume,omitempty"`
		OnHostLoss         OnHostLoss `json:"on_host_loss,omitempty"`
		CheckpointEverySec *int64     `json:"checkpoint_every_sec,omitempty"`
	}{OnTimeout: change.OnTimeout, AutoResume: change.AutoResume, OnHostLoss: change.OnHostLoss}
	if change.CheckpointEvery != nil {
		body.CheckpointEverySec = new(seconds(*change.CheckpointEvery))
	}
	return c.sandbox(ctx, request{method: http.MethodPatch, path: sandboxPath(id, "/settings"), body: body})
}

// SetMetadata replaces the metadata of a running or paused sandbox.
func (c *Client) SetMetadata(ctx context.Context, id string, metadata map[string]string) (*Sandbox, error) {
	if metadata == nil {
		metadata = map[string]string{}
	}
	body := map[string]map[string]string{"metadata": metadata}
	return c.sandbox(ctx, request{method: http.MethodPut, path: sandboxPath(id, "/metadata"), body: body})
}

// ListSandboxes selects sandboxes. The zero value selects all of the team.
type ListSandboxes struct {
	States   []State           // in any of these states
	Metadata map[string]string // with all of these labels
	PageSize int               // sandboxes per request; 0 means the server's default
}

// Sandboxes lists sandboxes, newest first. It requests the next page when the
// loop reaches it. The loop ends after an error.
func (c *Client) Sandboxes(ctx context.Context, list ListSandboxes) iter.Seq2[Sandbox, error] {
	return pages[Sandbox](ctx, c, "/v1/sandboxes", list.query())
}

// pages lists what is on all pages of a list. It requests the next one when the loop
// reaches it.
func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			var page []T
			header, err := c.callHeader(ctx, request{method: http.MethodGet, path: path, query: query}, &page)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, entry := range page {
				if !yield(entry, nil) {
					return
				}
			}
			next := header.Get("X-Next-Page")
			if next == "" {
				return
			}
			query.Set("page", next)
		}
	}
}

func (l ListSandboxes) query() url.Values {
	query := url.Values{}
	for _, s := range l.States {
		query.Add("state", string(s))
	}
	for name, value := range l.Metadata {
		query.Add("metadata", name+"="+value)
	}
	slices.Sort(query["metadata"])
	if l.PageSize > 0 {
		query.Set("limit", strconv.Itoa(l.PageSize))
	}
	return query
}
