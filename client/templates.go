package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// GenerationState is where a generation of a template is in its life.
type GenerationState string

// The states.
const (
	GenerationBuilding GenerationState = "building"
	GenerationReady    GenerationState = "ready"
	GenerationFailed   GenerationState = "failed"
	GenerationDeleted  GenerationState = "deleted"
)

// BuildTemplate says what template to build. Name is needed, and at most one of
// the Froms: without one it is made from the base. Zero values are defaults.
type BuildTemplate struct {
	Name string // or name:tag

	FromImage string // an image of a host
	FromOCI   string // a container image in a registry
	// RegistryUsername and RegistryPassword are for FromOCI. They are not kept.
	RegistryUsername, RegistryPassword string
	FromSandbox                        string // a running sandbox, as it is now; what follows is left out then

	VCPUs        int
	MemoryMB     int
	Env          map[string]string // of every command in its sandboxes
	StartCmd     string            // a shell command that runs on in every sandbox
	ReadyCmd     string            // a shell command that succeeds when the sandbox is ready
	ReadyTimeout time.Duration     // for ReadyCmd, in whole seconds
}

func (b BuildTemplate) body() map[string]any {
	body := map[string]any{"name": b.Name}
	for name, text := range map[string]string{
		"from_image": b.FromImage, "from_oci": b.FromOCI, "registry_username": b.RegistryUsername, "registry_password": b.RegistryPassword,
		"from_sandbox": b.FromSandbox, "start_cmd": b.StartCmd, "ready_cmd": b.ReadyCmd,
	} {
		if text != "" {
			body[name] = text
		}
	}
	for name, n := range map[string]int{
		"vcpus": b.VCPUs, "memory_mb": b.MemoryMB, "ready_timeout_sec": int((b.ReadyTimeout + time.Second - 1) / time.Second),
	} {
		if n != 0 {
			body[name] = n
		}
	}
	if len(b.Env) > 0 {
		body["env"] = b.Env
	}
	return body
}

// Generation is one build of a template and what came of it. It never changes but for its state.
type Generation struct {
	ID          string          `json:"id"`
	Template    string          `json:"template"`
	State       GenerationState `json:"state"`
	Reason      string          `json:"reason,omitempty"` // why it failed or was deleted
	FromImage   string          `json:"from_image,omitempty"`
	FromOCI     string          `json:"from_oci,omitempty"`
	FromSandbox string          `json:"from_sandbox,omitempty"`
	VCPUs       int             `json:"vcpus"`
	MemoryMB    int             `json:"memory_mb"`
	StartCmd    string          `json:"start_cmd,omitempty"`
	ReadyCmd    string          `json:"ready_cmd,omitempty"`
	SizeBytes   int64           `json:"size_bytes,omitempty"` // on its host's disk, what it shares with others included
	Digest      string          `json:"digest,omitempty"`     // of the container image
	CreatedAt   time.Time       `json:"created_at"`
	UpdatedAt   time.Time       `json:"last_updated"` // the last change of State
}

// Template is a name and what it means.
type Template struct {
	Name    string      `json:"name"`
	Builtin bool        `json:"builtin"`           // the base, which has no generations
	Current *Generation `json:"current,omitempty"` // what sandboxes are created from; nil before the first is ready
	Latest  *Generation `json:"latest,omitempty"`  // the newest build, whatever came of it
}

// BuildLog is a piece of what a build said.
type BuildLog struct {
	Generation Generation `json:"generation"`
	First      int64      `json:"first"` // the number of the first line
	Lines      []string   `json:"lines"`
	Next       int64      `json:"next"` // where to go on
}

// BuildTemplate begins to build a template, and returns at once: the server
// goes on by itself. FollowBuild waits for the end.
func (c *Client) BuildTemplate(ctx context.Context, b BuildTemplate) (*Generation, error) {
	out := &Generation{}
	if err := c.call(ctx, request{method: http.MethodPost, path: "/v1/templates", body: b.body()}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Templates returns the base and the team's templates, by name.
func (c *Client) Templates(ctx context.Context) ([]Template, error) {
	var out []Template
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/templates"}, &out)
	return out, err
}

func templatePath(template, rest string) string {
	return "/v1/templates/" + url.PathEscape(template) + rest
}

// Template returns one.
func (c *Client) Template(ctx context.Context, template string) (*Template, error) {
	out := &Template{}
	if err := c.call(ctx, request{method: http.MethodGet, path: templatePath(template, "")}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteTemplate deletes a template, and gives its build up. Sandboxes that were created from it live on.
func (c *Client) DeleteTemplate(ctx context.Context, template string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: templatePath(template, "")}, nil)
}

// BuildLog returns a generation and what its build said from a line on, at most 1000 lines.
func (c *Client) BuildLog(ctx context.Context, template, generation string, from int64) (*BuildLog, error) {
	out := &BuildLog{}
	r := request{
		method: http.MethodGet, path: templatePath(template, "/generations/"+url.PathEscape(generation)),
		query: url.Values{"from": {strconv.FormatInt(from, 10)}},
	}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// followEvery is the pause between two looks at a build: its server writes the log once a second.
const followEvery = time.Second

// FollowBuild returns a generation when its build has ended, well or not, and
// calls line with what it says meanwhile. It goes on over short failures of the way to the server.
func (c *Client) FollowBuild(ctx context.Context, template, generation string, line func(string)) (*Generation, error) {
	const patience = 30 // failures in a row
	var from int64
	for failures := 0; ; {
		log, err := c.BuildLog(ctx, template, generation, from)
		switch {
		case err == nil:
			failures = 0
			for _, text := range log.Lines {
				line(text)
			}
			from = log.Next
			if len(log.Lines) > 0 {
				continue
			}
			if log.Generation.State != GenerationBuilding {
				return &log.Generation, nil
			}
		case ctx.Err() != nil || CodeOf(err) != Unavailable || failures == patience:
			return nil, err
		default:
			failures++
		}
		select {
		case <-ctx.Done():
			return nil, c.broken(ctx, ctx.Err())
		case <-time.After(followEvery):
		}
	}
}
