package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// OnTimeout is what happens to a sandbox that is not used for its timeout.
type OnTimeout string

// What can happen at a sandbox's timeout.
const (
	DestroyOnTimeout OnTimeout = "destroy"
	PauseOnTimeout   OnTimeout = "pause"
	// PauseDiskOnTimeout is that of PauseSandboxDisk; of a sandbox that does not answer
	// the memory is saved as well.
	PauseDiskOnTimeout OnTimeout = "pause_disk"
)

// Fork describes the copies to make.
type Fork struct {
	Count    int               // at most 100; 0 means 1
	Metadata map[string]string // of each copy; nil means the sandbox's own
	// Checkpoint is the id of the sandbox's checkpoint that they are copies of; "" means
	// the sandbox as it is now.
	Checkpoint string
}

// Forked is the result of a fork.
type Forked struct {
	Sandboxes []Sandbox    `json:"sandboxes"` // the copies that run
	Errors    []FailedCopy `json:"errors"`
}

// FailedCopy is a copy that could not be made.
type FailedCopy struct {
	ID      string `json:"id"`
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// ForkSandbox makes running copies of a running or paused sandbox, all from the
// same moment, or from a checkpoint of it, and returns when they run. The sandbox itself stays running or
// paused. It is not an error when only some of the copies run: see Forked.Errors.
func (c *Client) ForkSandbox(ctx context.Context, id string, f Fork) (*Forked, error) {
	body := map[string]any{}
	if f.Count != 0 {
		body["count"] = f.Count
	}
	if f.Metadata != nil {
		body["metadata"] = f.Metadata
	}
	if f.Checkpoint != "" {
		body["checkpoint"] = f.Checkpoint
	}
	out := &Forked{}
	if err := c.call(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/fork"), body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Checkpoint is a saved state of a sandbox, which the sandbox can be restored to.
// The checkpoints of a sandbox form a tree.
type Checkpoint struct {
	ID        string    `json:"id"`
	ParentID  string    `json:"parent_id,omitempty"` // the checkpoint that the sandbox continued from; "" for none
	Name      string    `json:"name"`                // for people
	CreatedAt time.Time `json:"created_at"`
	SizeBytes int64     `json:"size_bytes"`          // on its host's disk, including what it shares with others
	OwnBytes  *int64    `json:"own_bytes,omitempty"` // what its deletion frees; nil when the server cannot tell, and from CreateCheckpoint
	StoredAt  time.Time `json:"stored_at,omitzero"`  // set while it is in the snapshot store as well: since when
	Automatic bool      `json:"automatic,omitempty"` // it was made by CreateSandbox.CheckpointEvery
}

// Checkpoints are the checkpoints of a sandbox.
type Checkpoints struct {
	Checkpoints []Checkpoint `json:"checkpoints"`          // oldest first
	Head        string       `json:"head,omitempty"`       // the one that the sandbox continued from last; "" for none
	DiskBytes   *int64       `json:"disk_bytes,omitempty"` // what they take together, shared blocks once; nil when the server cannot tell
}

// CreateCheckpoint saves the current state of a running sandbox, which then
// continues. The name may be empty.
func (c *Client) CreateCheckpoint(ctx context.Context, id, name string) (*Checkpoint, error) {
	out := &Checkpoint{}
	body := map[string]string{"name": name}
	if err := c.call(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/checkpoints"), body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Checkpoints returns a sandbox's checkpoints.
func (c *Client) Checkpoints(ctx context.Context, id string) (*Checkpoints, error) {
	out := &Checkpoints{}
	if err := c.call(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/checkpoints")}, out); err != nil {
		return nil, err
	}
	return out, nil
}

func checkpointPath(id, checkpoint, rest string) string {
	return sandboxPath(id, "/checkpoints/"+url.PathEscape(checkpoint)+rest)
}

// RestoreCheckpoint restores a sandbox to a checkpoint. The sandbox's current
// state is lost; all checkpoints stay. When it fails, the sandbox continues as
// before. A sandbox that failed continues from its newest stored checkpoint; if no host can run
// it now, it is paused there.
func (c *Client) RestoreCheckpoint(ctx context.Context, id, checkpoint string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: checkpointPath(id, checkpoint, "/restore")})
}

// DeleteCheckpoint deletes a checkpoint; its children become children of its
// parent. Twice is allowed.
func (c *Client) DeleteCheckpoint(ctx context.Context, id, checkpoint string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: checkpointPath(id, checkpoint, "")}, nil)
}
