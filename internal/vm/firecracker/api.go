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
		ID       string `json:"drive_id"`
		Path     string `json:"path_on_host"`
		Root     bool   `json:"is_root_device"`
		ReadOnly bool   `json:"is_read_only"`
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

// The states of a machine, as `GET /` says them.
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

// Is finds ENOSPC in what Firecracker says of a full disk.
func (f *Fault) Is(target error) bool {
	return target == unix.ENOSPC && strings.Contains(f.Message, fmt.Sprintf("(os error %d)", int(unix.ENOSPC)))
}

// client talks to one Firecracker. Its calls are handled one at a time there.
type client struct{ http *http.Client }

// idleLimit is how long a connection is kept for the next call.
const idleLimit = 5 * time.Second

func newClient(dial func(context.Context) (net.Conn, error)) *client {
	return &client{&http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		IdleConnTimeout: idleLimit,
	}}}
}

// close ends idle connections; the client can go on.
func (c *client) close() { c.http.CloseIdleConnections() }

// answerLimit bounds what is read of an answer: the VMM is not trusted once a
// guest has run in it.
const answerLimit = 64 << 10

// call makes one call; in is its body, out takes the answer's, nil for none.
// The error is a *Fault when Firecracker refused.
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

// faultMessage takes the message out of an error's body.
func faultMessage(body []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if err := json.Unmarshal(body, &fault); err == nil && fault.Message != "" {
		return fault.Message
	}
	return fmt.Sprintf("%.200q", body)
}

// configLimit bounds a call that only sets something: milliseconds, also under
// emulation.
const configLimit = 15 * time.Second

func (c *client) put(ctx context.Context, path string, body any) error {
	return c.call(ctx, configLimit, http.MethodPut, path, body, nil)
}

// startLimit bounds InstanceStart, which loads the kernel and the initramfs.
const startLimit = time.Minute

func (c *client) start(ctx context.Context) error {
	return c.call(ctx, startLimit, http.MethodPut, "/actions", action{"InstanceStart"}, nil)
}

// state is what the machine does: statePaused, stateRunning or "Not started".
func (c *client) state(ctx context.Context) (string, error) {
	var info vmState
	err := c.call(ctx, configLimit, http.MethodGet, "/", nil, &info)
	return info.State, err
}

// setState takes "Paused" or "Resumed".
func (c *client) setState(ctx context.Context, state string) error {
	return c.call(ctx, startLimit, http.MethodPatch, "/vm", vmState{state}, nil)
}

// create writes a snapshot. The time that it may take grows with the memory,
// down to 16 MiB a second on a busy disk. It does not end with ctx: Firecracker
// would go on writing, and let everything wait that comes after, a resume too.
// A VMM that is killed ends it.
func (c *client) create(ctx context.Context, memoryMiB int, body snapshotCreate) error {
	limit := time.Minute + time.Duration(memoryMiB/16)*time.Second
	return c.call(context.WithoutCancel(ctx), limit, http.MethodPut, "/snapshot/create", body, nil)
}

// loadLimit bounds snapshot/load; it maps the memory and reads the state.
const loadLimit = time.Minute

func (c *client) load(ctx context.Context, body snapshotLoad) error {
	return c.call(ctx, loadLimit, http.MethodPut, "/snapshot/load", body, nil)
}
