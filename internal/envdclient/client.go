// Package envdclient is the client of envd, the agent inside a guest, for its host and,
// through the host, for the control plane: readiness, initialization, commands, files
// and ports. Everything that a guest answers is bounded and may be hostile.
package envdclient

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/untrusted"
	"wrenn.dev/proto/gen/envd/filesystem/filesystemconnect"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

const (
	// maxAnswer bounds an answer that should be short.
	maxAnswer = 64 << 10
	// maxText bounds text of the guest in errors.
	maxText = 1 << 10
	// maxMessage bounds one message of a stream. envd sends at most 64 KiB of output in one.
	maxMessage = 1 << 20
)

// Config configures a client.
type Config struct {
	// Dial opens a connection to Address; a slot's dialer does it from inside
	// the guest's network namespace. Required.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Address is envd's host:port for Dial. Required.
	Address string
	// Token is the X-Access-Token; empty when the sandbox has none.
	Token string
}

// Client is a client of one envd. It is safe for concurrent use. The caller must
// Close it.
type Client struct {
	address string
	base    string
	token   string
	http    *http.Client
	probe   *http.Client // of Probe
	process processconnect.ProcessClient
	// files and processes are for answers that may be large, up to maxList.
	files     filesystemconnect.FilesystemClient
	processes processconnect.ProcessClient
	conns     *connections
}

// New returns a client. It does not connect yet.
func New(cfg Config) *Client {
	conns := &connections{dial: retrying(cfg.Dial), agent: cfg.Address, open: map[*connection]struct{}{}}
	transport := &http.Transport{
		DialContext:         conns.DialContext,
		DisableCompression:  true, // the network is a memory copy, and compression costs the guest's CPU
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     90 * time.Second,
	}
	c := &Client{
		address: cfg.Address, base: "http://" + cfg.Address, token: cfg.Token,
		http:  untrusted.Client(transport),
		probe: untrusted.Client(&http.Transport{DialContext: conns.dialProbe, DisableCompression: true}),
		conns: conns,
	}
	c.http.Transport = tracing.Transport{RoundTripper: tokenTransport{token: cfg.Token, next: transport}, Name: "guest"}
	// No compression: a hostile guest's message could be a thousand times as large here.
	unpacked := connect.WithAcceptCompression("gzip", nil, nil)
	c.process = processconnect.NewProcessClient(c.http, c.base, connect.WithReadMaxBytes(maxMessage), unpacked)
	large := *c.http
	large.Transport = budget.Transport{RoundTripper: large.Transport}
	c.files = filesystemconnect.NewFilesystemClient(&large, c.base, connect.WithReadMaxBytes(maxList), unpacked)
	c.processes = processconnect.NewProcessClient(&large, c.base, connect.WithReadMaxBytes(maxList), unpacked)
	return c
}

// Close ends all calls and streams, which fail with FailedPrecondition. It is
// called before the guest ends. Twice is allowed.
func (c *Client) Close() { c.conns.close(errGone) }

// CloseEnded is Close of a sandbox that has ended by itself, for that reason, which
// the errors say.
func (c *Client) CloseEnded(reason string) {
	c.conns.close(&goneError{wrenn.Errorf(wrenn.FailedPrecondition, "%s: %s", errGone.why.Message, reason)})
}

// ClosePaused is Close of a sandbox that is paused: calls and streams fail with
// CutByPause.
func (c *Client) ClosePaused() { c.conns.close(errPaused) }

// ReadFile opens a file of the guest for reading. ~ and relative paths are those
// of user; "" is the guest's default user. The caller closes it. A transfer that
// breaks is an error of Read, never a clean end.
func (c *Client) ReadFile(ctx context.Context, user, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.filesURL(user, path), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(req)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return resp.Body, nil
}

// WriteFile streams content into a file of the guest, owned by user. The file is
// replaced at the end: a write that fails leaves the old one.
func (c *Client) WriteFile(ctx context.Context, user, path string, content io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.filesURL(user, path), content)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.do(req)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return resp.Body.Close()
}

func (c *Client) filesURL(user, path string) string {
	query := url.Values{"path": {path}}
	if user != "" {
		query.Set("username", user)
	}
	return c.base + "/files?" + query.Encode()
}

// do sends a request and returns the answer if its status is 2xx, else envd's
// message as an error.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if gone := Gone(err); gone != nil {
		return nil, gone
	}
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.Unavailable, Message: errUnanswered, Err: err}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var body struct{ Message string }
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // the status alone is enough
	if json.Unmarshal(raw, &body) != nil || body.Message == "" {
		body.Message = resp.Status
	}
	return nil, &answer{err: wrenn.Errorf(statusMeaning(resp.StatusCode), "%s", clean(body.Message)), status: resp.StatusCode}
}

// clean makes one short line of a guest's text, which may be hostile and gets to
// databases, logs and terminals.
func clean(text string) string { return plain.Shorten(plain.Line(text), maxText) }

// tokenTransport adds the access token to every request.
type tokenTransport struct {
	token string
	next  http.RoundTripper
}

func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.token == "" {
		return t.next.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.Header.Set(accesstoken.Header, t.token)
	return t.next.RoundTrip(req)
}
