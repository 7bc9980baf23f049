package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Host is a machine that runs sandboxes.
type Host struct {
	ID         string            `json:"id"` // never changes
	Name       string            `json:"name"`
	URL        string            `json:"url"` // where the servers reach it
	Zone       string            `json:"zone"`
	Labels     map[string]string `json:"labels"`
	Status     string            `json:"status"` // active, cordoned, draining, removed, lost
	Joined     bool              `json:"joined"` // by a token; otherwise it is in the configuration of a server
	Reachable  bool              `json:"reachable"`
	Version    string            `json:"version"`
	Driver     string            `json:"driver"`
	Platform   string            `json:"platform,omitempty"` // what snapshots depend on; "" when it is not known
	Capacity   HostCapacity      `json:"capacity"`
	CreatedAt  time.Time         `json:"created_at"`
	LastSeenAt time.Time         `json:"last_seen_at,omitzero"` // zero when it never answered

	CertificateUntil time.Time `json:"certificate_until,omitzero"` // zero for a host of a configuration
	Drain            *Drain    `json:"drain,omitempty"`            // of one that is drained; nil in lists
}

// Drain is how far the drain of a host is.
type Drain struct {
	Left     int        `json:"left"`      // sandboxes that it still has; with 0 the drain is done
	Moving   int        `json:"moving"`    // of these, those that were paused to be moved
	NotMoved []NotMoved `json:"not_moved"` // of these, those that could not be moved; 100 at most
}

// NotMoved is a sandbox that could not be moved off its host.
type NotMoved struct {
	Sandbox string `json:"sandbox"`
	Reason  string `json:"reason"`
}

// HostToken is a token with which one host joins, once.
type HostToken struct {
	Token     string    `json:"token"`
	Host      string    `json:"host"`
	ExpiresAt time.Time `json:"expires_at"`
}

// CreateHostToken says which host a token is for. Zero values are the defaults: a made-up
// id, and an hour.
type CreateHostToken struct {
	Host   string // that of a host that joined lets it join again
	Name   string // for people
	Zone   string
	Labels map[string]string
	TTL    time.Duration // whole seconds
}

// CreateHostToken makes a token for `host-agent join`.
func (c *Client) CreateHostToken(ctx context.Context, want CreateHostToken) (*HostToken, error) {
	body := struct {
		Host   string            `json:"host,omitempty"`
		Name   string            `json:"name,omitempty"`
		Zone   string            `json:"zone,omitempty"`
		Labels map[string]string `json:"labels,omitempty"`
		TTL    int64             `json:"ttl_sec,omitempty"`
	}{want.Host, want.Name, want.Zone, want.Labels, int64(want.TTL / time.Second)}
	out := &HostToken{}
	if err := c.call(ctx, request{method: http.MethodPost, path: "/v1/host-tokens", body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// HostCapacity is a host's limits, each 0 for none, and what is used of them.
type HostCapacity struct {
	Sandboxes     int   `json:"sandboxes"`
	SandboxesUsed int   `json:"sandboxes_used"`
	MemoryMB      int64 `json:"memory_mb"`
	MemoryMBUsed  int64 `json:"memory_mb_used"`
	DiskMB        int64 `json:"disk_mb"` // of the file system with the disks
	DiskFreeMB    int64 `json:"disk_free_mb"`
	DisksMB       int64 `json:"disks_mb"` // of the disks of all sandboxes, full or not
	DisksMBUsed   int64 `json:"disks_mb_used"`
}

// Hosts returns all hosts by id, also those that were removed. It and the other calls
// for hosts need a key with the scope operator.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	var out []Host
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/hosts"}, &out)
	return out, err
}

// Host returns a host, by its id.
func (c *Client) Host(ctx context.Context, id string) (*Host, error) {
	return c.host(ctx, http.MethodGet, hostPath(id))
}

// CordonHost lets no new sandboxes onto a host; those that it has stay. Twice is allowed.
func (c *Client) CordonHost(ctx context.Context, id string) (*Host, error) {
	return c.host(ctx, http.MethodPost, hostPath(id)+"/cordon")
}

// UncordonHost lets new sandboxes onto a host again. Twice is allowed.
func (c *Client) UncordonHost(ctx context.Context, id string) (*Host, error) {
	return c.host(ctx, http.MethodPost, hostPath(id)+"/uncordon")
}

// DrainHost cordons a host and has its sandboxes moved to other hosts, in the background.
// Host shows the progress; UncordonHost ends it. Twice is allowed.
func (c *Client) DrainHost(ctx context.Context, id string) (*Host, error) {
	return c.host(ctx, http.MethodPost, hostPath(id)+"/drain")
}

// RemoveHost ends the use of a host that joined, is cordoned and has no sandboxes,
// templates and volumes. Twice is allowed.
func (c *Client) RemoveHost(ctx context.Context, id string) (*Host, error) {
	return c.host(ctx, http.MethodPost, hostPath(id)+"/remove")
}

// LoseHost declares that a host does not come back: its sandboxes become failed. Twice
// is allowed.
func (c *Client) LoseHost(ctx context.Context, id string) (*Host, error) {
	return c.host(ctx, http.MethodPost, hostPath(id)+"/lose")
}

// Placement says why a sandbox is where it is, and where else it could be.
type Placement struct {
	Sandbox   string              `json:"sandbox"`
	State     State               `json:"status"`
	Host      string              `json:"host"`
	Requires  map[string]string   `json:"requires,omitempty"`
	Decisions []PlacementDecision `json:"decisions"` // oldest first
	Hosts     []PlacementHost     `json:"hosts"`     // those that fit first, the best at the head; none after its end
}

// PlacementDecision is when a sandbox got a host.
type PlacementDecision struct {
	At     time.Time `json:"at"`
	Host   string    `json:"host"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
}

// PlacementHost is whether a host could have a sandbox now, and why.
type PlacementHost struct {
	Host   string  `json:"host"`
	Here   bool    `json:"here"` // it has the sandbox
	Fits   bool    `json:"fits"`
	Reason string  `json:"reason"`
	Cost   float64 `json:"cost,omitempty"` // of one that fits; the lowest is picked
}

// ExplainPlacement returns why a sandbox, of any team, is on its host.
func (c *Client) ExplainPlacement(ctx context.Context, id string) (*Placement, error) {
	out := &Placement{}
	if err := c.call(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/placement")}, out); err != nil {
		return nil, err
	}
	return out, nil
}

func (c *Client) host(ctx context.Context, method, path string) (*Host, error) {
	out := &Host{}
	if err := c.call(ctx, request{method: method, path: path}, out); err != nil {
		return nil, err
	}
	return out, nil
}

func hostPath(id string) string { return "/v1/hosts/" + url.PathEscape(id) }
