package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// BuildState is the state of a build of a template.
type BuildState string

// The states.
const (
	BuildBuilding BuildState = "building"
	BuildReady    BuildState = "ready"
	BuildFailed   BuildState = "failed"
	BuildDeleted  BuildState = "deleted"
)

// GenerationState is the former name of BuildState.
//
// Deprecated: use BuildState.
type GenerationState = BuildState

// The former names of the states.
//
// Deprecated: use BuildBuilding, BuildReady, BuildFailed and BuildDeleted.
const (
	GenerationBuilding = BuildBuilding
	GenerationReady    = BuildReady
	GenerationFailed   = BuildFailed
	GenerationDeleted  = BuildDeleted
)

// BuildTemplate describes a template to build. Name is required. At most one of
// FromImage, FromOCI, FromTemplate and FromSandbox may be set; without one the template is made
// from the base. Zero values mean the server's defaults.
type BuildTemplate struct {
	Name string // or name:tag

	FromImage string // an image of a host
	FromOCI   string // a container image in a registry
	// FromTemplate is a template that is ready, as name or name:tag. Its disk is used.
	FromTemplate string
	// RegistryUsername and RegistryPassword are for FromOCI. The server does not store them.
	RegistryUsername, RegistryPassword string
	FromSandbox                        string // a running sandbox, in its current state; the fields below must then be empty

	VCPUs        int
	MemoryMB     int
	DiskMB       int               // the size of the disk, at least that of the source
	Env          map[string]string // environment variables of every command in its sandboxes
	StartCmd     string            // a shell command that keeps running in every sandbox
	ReadyCmd     string            // a shell command that succeeds when the sandbox is ready
	ReadyTimeout time.Duration     // for ReadyCmd, in whole seconds, rounded up

	Steps   []BuildStep // they change the disk before the commands run
	NoCache bool        // run all steps, even if their results are cached
	// Network is what sandboxes of the template may reach; nil leaves that as it is.
	Network *NetworkPolicy
	// User and Workdir are of the steps and commands until a step changes them; ""
	// means those of the source.
	User, Workdir string
}

// BuildStep is a step of a build, as in a Dockerfile.
type BuildStep struct {
	Kind string `json:"kind"` // COPY, RUN, ENV, ARG, WORKDIR or USER
	// Args are of COPY: source, destination, and if wanted owner and mode; of RUN: a
	// command, and if wanted its user; of ENV and ARG: name, value, name, value, …; of
	// WORKDIR and USER: one.
	Args  []string `json:"args"`
	Files string   `json:"files,omitempty"` // of COPY: the hash under which PutBuildFiles has uploaded its files
	Shell []string `json:"shell,omitempty"` // of RUN: the program and the arguments before the command; none means a login shell
	Force bool     `json:"force,omitempty"` // run this step and all later ones, even if their results are cached
}

func (b BuildTemplate) body() map[string]any {
	body := map[string]any{"name": b.Name}
	for name, text := range map[string]string{
		"from_image": b.FromImage, "from_oci": b.FromOCI, "registry_username": b.RegistryUsername, "registry_password": b.RegistryPassword,
		"from_sandbox": b.FromSandbox, "from_template": b.FromTemplate, "user": b.User, "workdir": b.Workdir, "start_cmd": b.StartCmd, "ready_cmd": b.ReadyCmd,
	} {
		if text != "" {
			body[name] = text
		}
	}
	for name, n := range map[string]int{
		"vcpus": b.VCPUs, "memory_mb": b.MemoryMB, "disk_mb": b.DiskMB, "ready_timeout_sec": int((b.ReadyTimeout + time.Second - 1) / time.Second),
	} {
		if n != 0 {
			body[name] = n
		}
	}
	if len(b.Env) > 0 {
		body["env"] = b.Env
	}
	if len(b.Steps) > 0 {
		body["steps"] = b.Steps
	}
	if b.NoCache {
		body["no_cache"] = true
	}
	if b.Network != nil {
		body["network"] = b.Network
	}
	return body
}

// Build is one build of a template and its result, which the API calls a
// generation. Only its state ever changes.
type Build struct {
	ID          string     `json:"id"`
	Template    string     `json:"template"`
	State       BuildState `json:"state"`
	Reason      string     `json:"reason,omitempty"` // why it failed or was deleted
	FromImage   string     `json:"from_image,omitempty"`
	FromOCI     string     `json:"from_oci,omitempty"`
	FromSandbox string     `json:"from_sandbox,omitempty"`
	// FromTemplate is the build that it was made from.
	FromTemplate string `json:"from_template,omitempty"`
	// FailedStep is the step at which it failed: its number from 1, base or finalize.
	FailedStep string    `json:"failed_step,omitempty"`
	VCPUs      int       `json:"vcpus"`
	MemoryMB   int       `json:"memory_mb"`
	DiskMB     int       `json:"disk_mb"`
	StartCmd   string    `json:"start_cmd,omitempty"`
	ReadyCmd   string    `json:"ready_cmd,omitempty"`
	SizeBytes  int64     `json:"size_bytes,omitempty"` // on its host's disk, including what it shares with others
	Digest     string    `json:"digest,omitempty"`     // of the container image
	StoredAt   time.Time `json:"stored_at,omitzero"`   // set while it is in the snapshot store as well as on its host: since when
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"last_updated"` // when State last changed
}

// Generation is the former name of Build.
//
// Deprecated: use Build.
type Generation = Build

// Template is a name and its builds.
type Template struct {
	Name    string `json:"name"`
	Builtin bool   `json:"builtin"`           // the base, which has no builds
	Current *Build `json:"current,omitempty"` // what sandboxes are created from; nil before the first is ready
	Latest  *Build `json:"latest,omitempty"`  // the newest build, in any state
}

// BuildLog is a part of a build's log.
type BuildLog struct {
	Generation Build    `json:"generation"` // the build
	First      int64    `json:"first"`      // the number of the first line
	Lines      []string `json:"lines"`
	Next       int64    `json:"next"` // the number of the first line after these
}

// BuildTemplate starts the build of a template and returns at once: the server
// does the build. FollowBuild waits for its end.
func (c *Client) BuildTemplate(ctx context.Context, b BuildTemplate) (*Build, error) {
	out := &Build{}
	if err := c.call(ctx, request{method: http.MethodPost, path: "/v1/templates", body: b.body()}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// HasBuildFiles reports whether files of a COPY step need no upload. Hash is 64
// hexadecimal digits, and stands for the files wherever a step names it.
func (c *Client) HasBuildFiles(ctx context.Context, hash string) (bool, error) {
	var out struct{ Present bool }
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/build-files/" + url.PathEscape(hash)}, &out)
	return out.Present, err
}

// PutBuildFiles uploads files of a COPY step: a tar archive, compressed by gzip or
// not, of at most 1 GiB. It reads archive until io.EOF. When it fails nothing is
// stored, and archive may still be read for a moment after the return.
func (c *Client) PutBuildFiles(ctx context.Context, hash string, archive io.Reader) error {
	var frame bytes.Buffer // what comes before and after the archive
	form := multipart.NewWriter(&frame)
	if _, err := form.CreateFormFile("file", "files.tar.gz"); err != nil {
		return err
	}
	head := slices.Clone(frame.Bytes())
	if err := form.Close(); err != nil {
		return err
	}
	source := &watched{r: archive}
	err := c.call(ctx, request{
		method: http.MethodPut, path: "/v1/build-files/" + url.PathEscape(hash), media: form.FormDataContentType(),
		stream: io.MultiReader(bytes.NewReader(head), source, bytes.NewReader(frame.Bytes()[len(head):])),
	}, nil)
	if own := source.failure(); own != nil && err != nil {
		return fmt.Errorf("read the files: %w", own)
	}
	return err
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

// Template returns the template with that name.
func (c *Client) Template(ctx context.Context, template string) (*Template, error) {
	out := &Template{}
	if err := c.call(ctx, request{method: http.MethodGet, path: templatePath(template, "")}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteTemplate deletes a template and cancels its build. Sandboxes that were created from it keep running.
func (c *Client) DeleteTemplate(ctx context.Context, template string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: templatePath(template, "")}, nil)
}

// BuildLog returns a build by its id, and its log from line number from, at most 1000 lines.
func (c *Client) BuildLog(ctx context.Context, template, build string, from int64) (*BuildLog, error) {
	out := &BuildLog{}
	r := request{
		method: http.MethodGet, path: templatePath(template, "/generations/"+url.PathEscape(build)),
		query: url.Values{"from": {strconv.FormatInt(from, 10)}},
	}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// followEvery is the polling interval of FollowBuild, that of E2B's SDKs. The server writes the
// log once a second, but the end of a build at once.
const followEvery = 200 * time.Millisecond

// FollowBuild waits until the build with that id has succeeded or failed, and returns it. It
// calls line for each line of the build's log. It retries when the server cannot be
// reached, up to 30 times in a row.
func (c *Client) FollowBuild(ctx context.Context, template, build string, line func(string)) (*Build, error) {
	const maxFailures = 30 // in a row
	var from int64
	for failures := 0; ; {
		log, err := c.BuildLog(ctx, template, build, from)
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
			if log.Generation.State != BuildBuilding {
				return &log.Generation, nil
			}
		case ctx.Err() != nil || CodeOf(err) != Unavailable || failures == maxFailures:
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
