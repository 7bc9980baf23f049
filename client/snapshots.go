package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// OnTimeout is what happens to a sandbox that is not used for its timeout.
type OnTimeout string

// The endings.
const (
	DestroyOnTimeout OnTimeout = "destroy"
	PauseOnTimeout   OnTimeout = "pause"
)

// Fork says what copies to make.
type Fork struct {
	Count    int               // 0 is 1; at most 100
	Metadata map[string]string // of each; nil is that of the sandbox
}

// Forked is what became of a fork.
type Forked struct {
	Sandboxes []Sandbox    `json:"sandboxes"` // that run
	Errors    []FailedCopy `json:"errors"`
}

// FailedCopy says why there is no copy.
type FailedCopy struct {
	ID      string `json:"id"`
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// ForkSandbox makes running copies of a running or paused sandbox, all of one
// moment, and returns when they run; the sandbox goes on, or sleeps on, as it
// was. When only some come to run it is no error: look at Errors.
func (c *Client) ForkSandbox(ctx context.Context, id string, f Fork) (*Forked, error) {
	body := map[string]any{}
	if f.Count != 0 {
		body["count"] = f.Count
	}
	if f.Metadata != nil {
		body["metadata"] = f.Metadata
	}
	out := &Forked{}
	if err := c.call(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/fork"), body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Checkpoint is a moment in the life of a sandbox that it can go back to.
// Those of a sandbox form a tree.
type Checkpoint struct {
	ID        string    `json:"id"`
	ParentID  string    `json:"parent_id,omitempty"` // the one that the sandbox went on from; "" for none
	Name      string    `json:"name"`                // for people
	CreatedAt time.Time `json:"created_at"`
	SizeBytes int64     `json:"size_bytes"` // on its host's disk, what it shares with others included
}

// Checkpoints are those of a sandbox.
type Checkpoints struct {
	Checkpoints []Checkpoint `json:"checkpoints"`    // oldest first
	Head        string       `json:"head,omitempty"` // the one that the sandbox goes on from; "" for none
}

// CreateCheckpoint keeps what a running sandbox is now; it goes on. The name
// may be empty.
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

// RestoreCheckpoint makes a sandbox what it was at a checkpoint. What it is now
// is lost, no checkpoint is. When it fails the sandbox goes on as before.
func (c *Client) RestoreCheckpoint(ctx context.Context, id, checkpoint string) (*Sandbox, error) {
	return c.sandbox(ctx, request{method: http.MethodPost, path: checkpointPath(id, checkpoint, "/restore")})
}

// DeleteCheckpoint deletes a checkpoint; those made after it go on from its
// parent. Twice is allowed.
func (c *Client) DeleteCheckpoint(ctx context.Context, id, checkpoint string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: checkpointPath(id, checkpoint, "")}, nil)
}
