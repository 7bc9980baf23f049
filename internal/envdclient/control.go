package envdclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
)

const (
	// entropyBytes seed a restored guest's random number generator: 256 bits.
	entropyBytes = 32
	// goodRoundTrip is the longest duration of a call, without what it does in the guest,
	// that sets the clock well enough: the clock is then behind by less than that.
	goodRoundTrip = 100 * time.Millisecond
	// initTries and initTimeout bound how often and how long Init tries to be that
	// quick: the first call of a restored guest is its slowest, and a busy host may
	// never be quick. A late guest is better than one with a wrong time.
	initTries   = 12
	initTimeout = 3 * time.Second
)

// Init has the settings of a guest that started or was restored.
type Init struct {
	Env     map[string]string // for every process of the sandbox
	User    string            // the default user of commands; "" leaves it as it is
	Workdir string            // "" leaves it as it is
	Token   string            // from now on callers must send it; does not change this client
	// Identity, if not nil, is the guest's new identity.
	Identity *Identity
	// Volumes are mounted, if they are not, before users' processes thaw.
	Volumes []VolumeMount
	// CABundle are certificates, in PEM, that programs are to trust besides the system's;
	// "" changes nothing.
	CABundle string
}

// VolumeMount is a directory of an NFS server that a guest mounts. Its JSON form is
// that of /init.
type VolumeMount struct {
	Target string `json:"nfs_target"` // ADDRESS:/EXPORT
	Path   string `json:"path"`
}

// Identity distinguishes the copies of a snapshot.
type Identity struct {
	ID string // of the sandbox
	// StartCounter counts the sandbox's starts and restores. A guest takes a new
	// identity (boot id, host name, and for a new ID a machine id) if the pair of ID
	// and StartCounter differs from its own, so each restore needs a counter that no
	// snapshot of the sandbox has. A repeated pair changes nothing.
	StartCounter uint64
	Hostname     string // empty: ID
}

// Init initializes a guest that started or was restored, in this order: fresh
// entropy, the current time, the settings, the identity; at last it thaws the
// user's processes if they were frozen. They do not run before that, and stay
// frozen if Init fails.
//
// Twice is allowed. Init itself repeats the call while its way to the guest and back
// takes too long for the time in it to be right. FailedPrecondition: the agent does not
// know the call.
func (c *Client) Init(ctx context.Context, init Init) error {
	first := time.Now()
	for range initTries {
		began := time.Now()
		inside, err := c.initOnce(ctx, init)
		if err != nil {
			return explainOldAgent("init guest", err)
		}
		if time.Since(began)-inside < goodRoundTrip || time.Since(first) > initTimeout {
			break
		}
	}
	return nil
}

// initBody is the body of POST /init; see docs/envd.md.
type initBody struct {
	Timestamp string            `json:"timestamp"`
	Entropy   string            `json:"entropy"`
	Env       map[string]string `json:"envVars"`
	User      string            `json:"defaultUser,omitempty"`
	Workdir   string            `json:"defaultWorkdir,omitempty"`
	Token     string            `json:"accessToken"`
	Identity  *identityBody     `json:"identity,omitempty"`
	Volumes   []VolumeMount     `json:"volumeMounts,omitempty"`
	CABundle  string            `json:"caBundle,omitempty"`
}

type identityBody struct {
	ID           string `json:"id"`
	StartCounter uint64 `json:"generation"`
	Hostname     string `json:"hostname,omitempty"`
}

// initOnce also returns for how long the call was inside the guest's agent, which adds
// that to the time: 0 for an older agent. A guest that lies has a wrong clock.
func (c *Client) initOnce(ctx context.Context, init Init) (inside time.Duration, err error) {
	entropy := make([]byte, entropyBytes)
	rand.Read(entropy) // never fails, see crypto/rand
	body := initBody{
		Timestamp: timestamp(),
		Entropy:   base64.StdEncoding.EncodeToString(entropy),
		Env:       init.Env, User: init.User, Workdir: init.Workdir, Token: init.Token, Volumes: init.Volumes,
		CABundle: init.CABundle,
	}
	if id := init.Identity; id != nil {
		body.Identity = &identityBody{ID: id.ID, StartCounter: id.StartCounter, Hostname: id.Hostname}
	}
	header, err := c.postForHeader(ctx, "/init", body)
	return initDuration(header), err
}

// initDuration reads the Server-Timing of an answer to /init, in milliseconds.
func initDuration(header http.Header) time.Duration {
	text, _ := strings.CutPrefix(header.Get("Server-Timing"), "init;dur=")
	ms, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// Freeze stops all of the user's processes and flushes the root file system, for a
// snapshot whose processes run again at the end of Init. The agent keeps running;
// commands that are started while the guest is frozen wait. The caller must pause
// the machine soon. It must call Thaw in a machine that continues, whether a
// snapshot was taken or not. Otherwise the guest thaws by itself, after its CPUs
// ran for two minutes.
//
// Twice is allowed, and restarts the two minutes. If Freeze fails nothing is
// frozen, unless the guest does not answer: then call Thaw. FailedPrecondition:
// this guest cannot freeze (its agent is older, or it has no cgroup2). GuestFailed:
// a process hangs in the kernel, or the guest says so.
func (c *Client) Freeze(ctx context.Context) error {
	err := c.post(ctx, "/freeze", struct{}{})
	if _, status := answered(err); status == http.StatusConflict {
		err = &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest cannot freeze its processes", Err: err}
	}
	return explainOldAgent("freeze guest", err)
}

// Thaw resumes the user's processes that Freeze stopped, in the same machine; in a
// restored one Init does. It first sets the clock, which stood still while the
// machine was paused. Twice is allowed, and without Freeze. FailedPrecondition as
// for Freeze.
func (c *Client) Thaw(ctx context.Context) error {
	return explainOldAgent("thaw guest", c.post(ctx, "/thaw", map[string]string{"timestamp": timestamp()}))
}

// Trust has programs of the guest that start from now on trust certificates, in PEM,
// besides those of the system. Twice is allowed. FailedPrecondition: the agent does not
// know the call.
func (c *Client) Trust(ctx context.Context, bundle string) error {
	return explainOldAgent("have the guest trust the host's authority", c.post(ctx, "/trust", map[string]string{"caBundle": bundle}))
}

// GrowDisk has the guest grow its root file system to size bytes, once its disk is
// that large. Programs may be frozen. Twice is allowed. FailedPrecondition: the agent
// does not know the call. GuestFailed: the guest says why it cannot.
func (c *Client) GrowDisk(ctx context.Context, size int64) error {
	return explainOldAgent("grow the guest's disk", c.post(ctx, "/grow", map[string]int64{"bytes": size}))
}

// explainOldAgent explains the answer of an agent that does not know a call.
func explainOldAgent(doing string, err error) error {
	if wrenn.CodeOf(err) == wrenn.NotFound {
		err = &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest's agent is too old for this host: build the image or template again", Err: err}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

func timestamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// post sends body as JSON and expects no answer but its status.
func (c *Client) post(ctx context.Context, path string, body any) error {
	_, err := c.postForHeader(ctx, path, body)
	return err
}

func (c *Client) postForHeader(ctx context.Context, path string, body any) (http.Header, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	return resp.Header, resp.Body.Close()
}
