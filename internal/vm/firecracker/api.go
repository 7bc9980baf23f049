package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"wrenn.dev/internal/untrusted"

	"golang.org/x/sys/unix"
)

// The bodies of Firecracker's API, with the fields that are used, as in
// its src/firecracker/swagger/firecracker.yaml.
type (
	machineConfig struct {
		VCPUs     int `json:"vcpu_count"`
		MemoryMiB int `json:"mem_size_mib"`
	}
	bootSource struct {
		Kernel string `json:"kernel_image_path"`
		Initrd string `json:"initrd_path,omitempty"`
		Args   string `json:"boot_args"`
	}
	drive struct {
		ID       string       `json:"drive_id"`
		Path     string       `json:"path_on_host"`
		Root     bool         `json:"is_root_device"`
		ReadOnly bool         `json:"is_read_only"`
		Rate     *rateLimiter `json:"rate_limiter,omitempty"`
	}
	driveUpdate struct {
		ID   string       `json:"drive_id"`
		Path string       `json:"path_on_host,omitempty"`
		Rate *rateLimiter `json:"rate_limiter,omitempty"` // nil leaves it as it is
	}
	// rateLimiter bounds bytes and operations. In an update a bucket of size 0 is no bound.
	rateLimiter struct {
		Bytes      *tokenBucket `json:"bandwidth,omitempty"`
		Operations *tokenBucket `json:"ops,omitempty"`
	}
	tokenBucket struct {
		Size     int64 `json:"size"`
		RefillMs int64 `json:"refill_time"` // to be full again
	}
	networkInterface struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
		MAC string `json:"guest_mac,omitempty"`
	}
	action struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		State         string            `json:"snapshot_path"`
		Memory        memoryBackend     `json:"mem_backend"`
		Resume        bool              `json:"resume_vm"`
		Networks      []networkOverride `json:"network_overrides,omitempty"`
		ClockRealtime bool              `json:"clock_realtime,omitempty"`    // see capabilities
		TrackDirty    bool              `json:"track_dirty_pages,omitempty"` // see capabilities
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	networkOverride struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
	}
)

// The states of a machine in the answer to `GET /`.
const (
	statePaused  = "Paused"
	stateRunning = "Running"
)

// Fault is Firecracker's own error.
type Fault struct {
	Call    string // like "PUT /actions"
	Status  int
	Message string // its fault_message
}

func (f *Fault) Error() string {
	return fmt.Sprintf("firecracker refused %s (%d): %s", f.Call, f.Status, f.Message)
}

// Is reports whether the error is that of a full disk, for unix.ENOSPC.
func (f *Fault) Is(target error) bool {
	return target == unix.ENOSPC && strings.Contains(f.Message, fmt.Sprintf("(os error %d)", int(unix.ENOSPC)))
}

// client is a client of one Firecracker, which handles its calls one at a time.
type client struct{ http *http.Client }

// idleLimit is how long a connection is kept for the next call.
const idleLimit = 5 * time.Second

func newClient(dial func(context.Context) (net.Conn, error)) *client {
	return &client{untrusted.Client(&http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		IdleConnTimeout: idleLimit,
	})}
}

// close closes idle connections; the client stays usable.
func (c *client) close() { c.http.CloseIdleConnections() }

// answerLimit bounds an answer: a VMM that has run a guest is not trusted.
const answerLimit = 64 << 10

// call makes one call with the body in and decodes the answer's body into out; nil is
// for none. If Firecracker refuses it the error is a *Fault.
func (c *client) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	name := method + " " + path
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("firecracker did not answer %s within %s", name, limit))
	defer cancel()
	status, answer, err := c.exchange(ctx, method, path, in)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if status/100 != 2 {
		return &Fault{Call: name, Status: status, Message: faultMessage(answer)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: answer: %w", name, err)
	}
	return nil
}

func (c *client) exchange(ctx context.Context, method, path string, in any) (int, []byte, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, body)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	if len(answer) > answerLimit {
		err = errors.New("the answer is too long")
	}
	return resp.StatusCode, answer, err
}

// faultMessage returns the message in the body of an error.
func faultMessage(body []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if err := json.Unmarshal(body, &fault); err == nil && fault.Message != "" {
		return fault.Message
	}
	return fmt.Sprintf("%.200q", body)
}

// configLimit bounds a call that only configures the VMM: it takes milliseconds, also
// under emulation.
const configLimit = 15 * time.Second

func (c *client) put(ctx context.Context, path string, body any) error {
	return c.call(ctx, configLimit, http.MethodPut, path, body, nil)
}

func (c *client) updateDrive(ctx context.Context, d driveUpdate) error {
	return c.call(ctx, configLimit, http.MethodPatch, "/drives/"+d.ID, d, nil)
}

// startLimit bounds InstanceStart, which loads the kernel and the initramfs.
const startLimit = time.Minute

func (c *client) start(ctx context.Context) error {
	return c.call(ctx, startLimit, http.MethodPut, "/actions", action{"InstanceStart"}, nil)
}

// state returns the machine's state: statePaused, stateRunning or "Not started".
func (c *client) state(ctx context.Context) (string, error) {
	var info vmState
	err := c.call(ctx, configLimit, http.MethodGet, "/", nil, &info)
	return info.State, err
}

// setState sets the state to "Paused" or "Resumed".
func (c *client) setState(ctx context.Context, state string) error {
	return c.call(ctx, startLimit, http.MethodPatch, "/vm", vmState{state}, nil)
}

// create writes a snapshot. Its time limit grows with the memory: 16 MiB a second, for
// a busy disk. It does not end with ctx: Firecracker would continue to write, and all
// later calls, a resume too, would wait. Killing the VMM ends it.
func (c *client) create(ctx context.Context, memoryMiB int, body snapshotCreate) error {
	limit := time.Minute + time.Duration(memoryMiB/16)*time.Second
	return c.call(context.WithoutCancel(ctx), limit, http.MethodPut, "/snapshot/create", body, nil)
}

// loadLimit bounds snapshot/load; it maps the memory and reads the state.
const loadLimit = time.Minute

func (c *client) load(ctx context.Context, body snapshotLoad) error {
	return c.call(ctx, loadLimit, http.MethodPut, "/snapshot/load", body, nil)
}
