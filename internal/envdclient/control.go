package envdclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"wrenn"
)

const (
	// entropyBytes is what a restored guest gets for its random number generator: 256 bits.
	entropyBytes = 32
	// goodRoundTrip is how long a call may take whose time is good enough: the
	// guest's clock is then behind by less than that.
	goodRoundTrip = 100 * time.Millisecond
	// initTries and initPatience bound how often and how long Init tries to be as
	// quick: the first call of a restored guest is its slowest, and a busy host
	// may never be. A guest whose time is wrong is worse than one that is late.
	initTries    = 12
	initPatience = 3 * time.Second
)

// Init is what a guest is told after it started or was restored.
type Init struct {
	Env     map[string]string // for every process of the sandbox
	User    string            // runs what names no user
	Workdir string
	Token   string // from now on callers must send it; does not change this client
	// Identity, if not nil, is who the guest is from now on.
	Identity *Identity
}

// Identity tells the copies of one snapshot apart.
type Identity struct {
	ID string // of the sandbox
	// Generation counts the sandbox's starts and restores. A guest becomes
	// somebody new (boot id, host name, and for a new ID a machine id) when it
	// is told a pair of ID and Generation other than its own, so each restore
	// needs one that no snapshot of the sandbox has seen. Repeating a pair
	// changes nothing.
	Generation uint64
	Hostname   string // empty: ID
}

// Init does all that a start or a restore needs, in this order: fresh entropy,
// the clock set to now, the settings, the identity, and at last
// the user's processes thawed if they were frozen. Before it returned none of them has run.
// When it fails they still are frozen.
//
// It may be repeated, and repeats itself as long as the message takes so long
// that the time in it is a wrong one. FailedPrecondition: the agent does not know the call.
func (c *Client) Init(ctx context.Context, init Init) error {
	first := time.Now()
	for range initTries {
		began := time.Now()
		if err := orTooOld("init guest", c.initOnce(ctx, init)); err != nil {
			return err
		}
		if time.Since(began) < goodRoundTrip || time.Since(first) > initPatience {
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
	User      string            `json:"defaultUser"`
	Workdir   string            `json:"defaultWorkdir"`
	Token     string            `json:"accessToken"`
	Identity  *identityBody     `json:"identity,omitempty"`
}

type identityBody struct {
	ID         string `json:"id"`
	Generation uint64 `json:"generation"`
	Hostname   string `json:"hostname,omitempty"`
}

func (c *Client) initOnce(ctx context.Context, init Init) error {
	entropy := make([]byte, entropyBytes)
	rand.Read(entropy) // never fails, see crypto/rand
	body := initBody{
		Timestamp: timestamp(),
		Entropy:   base64.StdEncoding.EncodeToString(entropy),
		Env:       init.Env, User: init.User, Workdir: init.Workdir, Token: init.Token,
	}
	if id := init.Identity; id != nil {
		body.Identity = &identityBody{ID: id.ID, Generation: id.Generation, Hostname: id.Hostname}
	}
	err := c.post(ctx, "/init", body)
	if wrenn.CodeOf(err) == wrenn.Exhausted { // no other host would have more of it
		err = &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest has no room for what it is told", Err: err}
	}
	return err
}

// Freeze stops all of the user's processes and flushes the root file system, so
// that a snapshot can be taken that thaws only at the end of Init. The agent
// itself goes on; a command that is started meanwhile waits. The machine must be
// paused soon, or Thaw be called: on every way that does not end in a snapshot,
// and in the machine that goes on after one. A guest that hears neither thaws by itself
// after two minutes, in which its CPUs ran.
//
// Freezing what is frozen is no error, and begins the two minutes anew. When
// Freeze fails nothing is frozen, unless the guest does not answer any more:
// call Thaw. FailedPrecondition: this guest cannot freeze (its agent
// is older, or it has no cgroup2). DeadlineExceeded: a process hangs in the kernel.
func (c *Client) Freeze(ctx context.Context) error {
	return orTooOld("freeze guest", c.post(ctx, "/freeze", struct{}{}))
}

// Thaw lets the user's processes go on where Freeze stopped them, in the same
// machine; a restored one is thawed by Init. The clock is set first, because it stood still
// while the machine was paused. Thawing what is not frozen is no error.
// FailedPrecondition as for Freeze.
func (c *Client) Thaw(ctx context.Context) error {
	return orTooOld("thaw guest", c.post(ctx, "/thaw", map[string]string{"timestamp": timestamp()}))
}

// orTooOld explains the answer of an agent that does not know a call.
func orTooOld(doing string, err error) error {
	if wrenn.CodeOf(err) == wrenn.NotFound {
		err = &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest's agent is too old for this host: build the image or template anew", Err: err}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

func timestamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// post sends body as JSON and expects no answer but its status.
func (c *Client) post(ctx context.Context, path string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
