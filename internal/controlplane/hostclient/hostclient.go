// Package hostclient is a client of a host's agent, by hostagent.v1. Its API is
// the product's words: RPC messages stay inside, and errors are *wrenn.Error.
//
// Each operation has its own deadline, because they differ by orders of
// magnitude: a common one was either too short for a boot or too long for a
// ping. Streams have none; HTTP/2 pings find a peer that is gone, and a stall
// timer one that sends nothing. A stream buffers one message and the receive
// window below, so a slow reader slows the sandbox's program.
package hostclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/untrusted"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

const (
	dialTimeout  = 5 * time.Second
	pingAfter    = 15 * time.Second // of silence on a connection
	pingTimeout  = 15 * time.Second
	streamWindow = 1 << 20 // bytes per stream that are in flight to a reader that does not read
	idleBulk     = 4       // connections kept for the next download
	bulkBuffer   = 64 << 10
	uploadChunk  = 256 << 10
	maxMessage   = 64 << 20 // fits an inventory of 100,000 sandboxes, and twice the output that Exec keeps
)

// Deadlines bound the operations. Zero values are the defaults.
type Deadlines struct {
	Ping      time.Duration // 5 s
	Inventory time.Duration // 30 s
	Create    time.Duration // 5 min: the host may boot by software emulation; also for Fork
	Destroy   time.Duration // 1 min
	Pause     time.Duration // 5 min: 16 GiB of memory go to a slow disk; also for Resume, CreateCheckpoint and RestoreCheckpoint
	Extend    time.Duration // 10 s; also for SetNetwork and Metrics
	Start     time.Duration // 1 min, until a stream's first message
	Stall     time.Duration // 2 min, until a file's next piece
	ExecGrace time.Duration // 30 s on top of a command's own timeout
	Build     time.Duration // 1 h; the caller enforces it, see Client.Build
}

// WithDefaults returns d with its zero values filled in.
func (d Deadlines) WithDefaults() Deadlines {
	return Deadlines{
		Ping: cmp.Or(d.Ping, 5*time.Second), Inventory: cmp.Or(d.Inventory, 30*time.Second),
		Create: cmp.Or(d.Create, 5*time.Minute), Destroy: cmp.Or(d.Destroy, time.Minute),
		Pause: cmp.Or(d.Pause, 5*time.Minute), Extend: cmp.Or(d.Extend, 10*time.Second),
		Start: cmp.Or(d.Start, time.Minute), Stall: cmp.Or(d.Stall, 2*time.Minute),
		ExecGrace: cmp.Or(d.ExecGrace, 30*time.Second), Build: cmp.Or(d.Build, time.Hour),
	}
}

// The protocols, by their names in ALPN.
const (
	http1 = "http/1.1"
	http2 = "h2"
)

// Config says where a host's agent is. ID and URL must be set.
type Config struct {
	ID wrenn.HostID
	// URL is http://, https:// or unix:///path/of/a/socket.
	URL string
	// TLS returns the client's certificate and the CAs it trusts, for https. It is
	// called for each connection and returns a new configuration.
	TLS       func() *tls.Config
	Deadlines Deadlines
	// Traces makes spans of calls within the span of a request; nil makes none.
	Traces trace.TracerProvider
}

// Client is a client of one host. It is safe for concurrent use.
type Client struct {
	id        wrenn.HostID
	peer      string // for messages
	rpc       hostagentv1connect.HostAgentServiceClient
	transport *http.Transport
	// streams is for what sandboxes send and receive: calls do not wait on a
	// connection whose window is full of output that no caller reads.
	streams         hostagentv1connect.HostAgentServiceClient
	streamTransport *http.Transport
	// downloads is for large answers: one HTTP/1.1 connection for each costs both ends half of HTTP/2's work.
	downloads hostagentv1connect.HostAgentServiceClient
	bulk      *http.Transport
	codec     bulkCodec
	// dial opens a connection to the agent, by TLS where that is configured, for HTTP/1.1.
	dial      func(context.Context) (net.Conn, error)
	deadlines Deadlines
	epoch     wrenn.Epoch // see At
}

// New returns a client. It connects at the first call.
func New(cfg Config) (*Client, error) {
	calls, streams, bulk := newTransport(cfg.TLS, http2), newTransport(cfg.TLS, http2), newTransport(cfg.TLS, http1) // streams in both directions need HTTP/2
	bulk.MaxIdleConnsPerHost = idleBulk
	bulk.ReadBufferSize = bulkBuffer
	c := &Client{id: cfg.ID, peer: "host " + string(cfg.ID), transport: calls, streamTransport: streams, bulk: bulk, codec: bulkCodec{new(sync.Pool)}, deadlines: cfg.Deadlines.WithDefaults()}
	spans, err := tracing.Client(cfg.Traces)
	if err != nil {
		return nil, err
	}
	traced := connect.WithInterceptors(spans...)
	if c.rpc, err = newRPC(cfg.URL, calls, traced); err != nil {
		return nil, err
	}
	if c.streams, err = newRPC(cfg.URL, streams, traced); err != nil {
		return nil, err
	}
	if c.downloads, err = newRPC(cfg.URL, bulk, connect.WithCodec(c.codec), traced); err != nil {
		return nil, err
	}
	c.dial, err = dialer(cfg.URL, bulk)
	return c, err
}

// dialer returns how t, which newRPC has set up, connects to the agent at url.
func dialer(text string, t *http.Transport) (func(context.Context) (net.Conn, error), error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	dial, port := t.DialContext, "80"
	if u.Scheme == "https" {
		dial, port = t.DialTLSContext, "443"
		if dial == nil {
			dial = new(tls.Dialer).DialContext
		}
	}
	address := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	return func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", address) }, nil
}

func newRPC(url string, transport *http.Transport, opts ...connect.ClientOption) (hostagentv1connect.HostAgentServiceClient, error) {
	base, err := address(url, transport)
	if err != nil {
		return nil, err
	}
	opts = append(opts,
		connect.WithReadMaxBytes(maxMessage),
		// Windows count compressed bytes: repetitive output would fill a thousand times the window's memory before it is held up.
		connect.WithAcceptCompression("gzip", nil, nil))
	client := untrusted.Client(transport)
	client.Transport = budget.Transport{RoundTripper: client.Transport}
	return hostagentv1connect.NewHostAgentServiceClient(client, base, opts...), nil
}

// newTransport returns a transport for one protocol, by its name in ALPN.
func newTransport(identity func() *tls.Config, protocol string) *http.Transport {
	t := &http.Transport{
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		Protocols:   new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
			// The window of the connection stays at net/http's 1 GiB: streams without a reader fill it, and a full one stops all.
			MaxReceiveBufferPerStream: streamWindow,
		},
		IdleConnTimeout: 2 * time.Minute,
	}
	t.Protocols.SetHTTP1(protocol == http1)
	t.Protocols.SetHTTP2(protocol == http2)
	t.Protocols.SetUnencryptedHTTP2(protocol == http2)
	if identity != nil {
		t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			cfg := identity()
			cfg.NextProtos = []string{protocol}
			return (&tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: cfg}).DialContext(ctx, network, address)
		}
	}
	return t
}

// address returns the base URL. For a socket it changes how t dials.
func address(text string, t *http.Transport) (string, error) {
	invalid := wrenn.Errorf(wrenn.Invalid, "%.100q is not an address of a host: expected http://, https:// or unix:///path", text)
	u, err := url.Parse(text)
	if err != nil {
		return "", invalid
	}
	switch {
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		return strings.TrimSuffix(text, "/"), nil
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", u.Path)
		}
		return "http://host-agent", nil
	}
	return "", invalid
}

// At returns a client for a sandbox of that epoch: the host refuses its calls as Unavailable
// if the sandbox has another one there. 0 compares nothing. It is not closed.
func (c *Client) At(epoch wrenn.Epoch) *Client {
	at := *c
	at.epoch = epoch
	return &at
}

// Epoch is that of At; 0 is none.
func (c *Client) Epoch() wrenn.Epoch { return c.epoch }

// meant returns a context for a call that names the client's epoch.
func (c *Client) meant(ctx context.Context) context.Context {
	if c.epoch == 0 {
		return ctx
	}
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set(hostwire.EpochHeader, hostwire.EpochText(c.epoch))
	return ctx
}

// Close closes idle connections. Running calls continue.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.streamTransport.CloseIdleConnections()
	c.bulk.CloseIdleConnections()
}

// call makes a unary call with a deadline.
func call[Req, Res any](ctx context.Context, c *Client, limit time.Duration, f func(context.Context, *Req) (*Res, error), req *Req) (*Res, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := f(c.meant(ctx), req)
	return res, wire.FromConnect(c.peer, err)
}

// Ping returns what the host reports about itself. Uploads that begin there from now on
// are of the round, or a later one; 0 changes nothing.
func (c *Client) Ping(ctx context.Context, round uint64) (wrenn.HostInfo, error) {
	res, err := call(ctx, c, c.deadlines.Ping, c.rpc.Ping, &pb.PingRequest{StoreRound: round})
	if err != nil {
		return wrenn.HostInfo{}, err
	}
	return hostwire.ParseHostInfo(res), nil
}

// Create returns when the sandbox runs. Repeating it is safe. When ctx ends
// first the host may have created it or not: Destroy it. So it may after a
// FailedPrecondition, of an agent that cannot do what spec asks for. While the sandbox waits for
// its turn on the host, waiting is called with the reason, and with "" when it has its
// turn, from which the deadline counts.
func (c *Client) Create(ctx context.Context, id wrenn.SandboxID, spec wrenn.SandboxSpec, waiting func(reason string)) error {
	req := hostwire.CreateRequest(id, spec)
	made, err := c.start(ctx, req, waiting)
	if errors.Is(err, errNoStart) { // the agent is older
		made, err = call(ctx, c, c.deadlines.Create, c.rpc.CreateSandbox, req)
	}
	if err != nil {
		return err
	}
	return hostwire.CheckCreateResponse(made, spec)
}

// errNoStart means that the agent does not have the call.
var errNoStart = errors.New("the agent has no StartSandbox")

func (c *Client) start(ctx context.Context, req *pb.CreateSandboxRequest, waiting func(reason string)) (*pb.CreateSandboxResponse, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(c.deadlines.Create, func() { cancel(errStalled) })
	defer late.Stop()
	stream, err := c.rpc.StartSandbox(ctx, req)
	if err != nil {
		return nil, c.startError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // the result was received, or is not wanted
	for stream.Receive() {
		if made := stream.Msg().GetStarted(); made != nil {
			return made, nil
		}
		late.Reset(c.deadlines.Create)
		waiting(hostwire.Text(stream.Msg().GetWaiting()))
	}
	return nil, c.startError(ctx, stream.Err())
}

// startError is why a start ended without a result.
func (c *Client) startError(ctx context.Context, err error) error {
	switch {
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		return errNoStart
	case errors.Is(context.Cause(ctx), errStalled):
		return wrenn.Errorf(wrenn.DeadlineExceeded, "%s did not answer in time", c.peer)
	case err == nil:
		return wrenn.Errorf(wrenn.Unavailable, "%s ended the start without a result", c.peer)
	}
	return wire.FromConnect(c.peer, err)
}

// Destroy returns when nothing is left of the sandbox. It is no error if the host
// does not have it.
func (c *Client) Destroy(ctx context.Context, id wrenn.SandboxID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DestroySandbox, &pb.DestroySandboxRequest{SandboxId: string(id)})
	return err
}

// Pause pauses the sandbox; twice is allowed. FailedPrecondition when the agent is of
// a version that cannot do as the options say.
func (c *Client) Pause(ctx context.Context, id wrenn.SandboxID, options wrenn.PauseOptions) error {
	res, err := call(ctx, c, c.deadlines.Pause, c.rpc.PauseSandbox, hostwire.PauseRequest(id, options))
	if err == nil && res.GetDiskOnly() != options.DiskOnly {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old for a pause without memory: it was paused with it")
	}
	return err
}

// ID is that of the host.
func (c *Client) ID() wrenn.HostID { return c.id }

// Resume continues a paused sandbox; twice is allowed. Token is the access token of
// its agent, for a sandbox that was created without one.
func (c *Client) Resume(ctx context.Context, id wrenn.SandboxID, token string) error {
	_, err := call(ctx, c, c.deadlines.Pause, c.rpc.ResumeSandbox, &pb.ResumeSandboxRequest{SandboxId: string(id), AccessToken: token})
	return err
}

// Fetch makes the paused sandbox on this host from what another host has stored of it;
// twice is allowed. FailedPrecondition when the agent is of a version that cannot,
// or has no store, or what is stored cannot be used; NotFound when nothing is stored.
func (c *Client) Fetch(ctx context.Context, id wrenn.SandboxID, from wrenn.StoredSandbox) error {
	_, err := call(ctx, c, c.deadlines.Pause, c.rpc.FetchSandbox, hostwire.FetchRequest(id, from))
	return err
}

// Boot is Resume by a boot from the disk. FailedPrecondition when the agent is of a
// version that cannot.
func (c *Client) Boot(ctx context.Context, id wrenn.SandboxID, token string) error {
	res, err := call(ctx, c, c.deadlines.Pause, c.rpc.ResumeSandbox, &pb.ResumeSandboxRequest{SandboxId: string(id), AccessToken: token, Boot: true})
	if err == nil && !res.GetBoot() {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old to boot it: it continues with its memory")
	}
	return err
}

// Extend sets the time without use after which the sandbox ends, counted from
// now; 0 is never.
func (c *Client) Extend(ctx context.Context, id wrenn.SandboxID, timeout time.Duration) error {
	_, err := call(ctx, c, c.deadlines.Extend, c.rpc.ExtendSandbox, hostwire.ExtendRequest(id, timeout))
	return err
}

// SetSettings changes the settings of a running or paused sandbox. FailedPrecondition when
// the agent is of a version that cannot.
func (c *Client) SetSettings(ctx context.Context, id wrenn.SandboxID, settings wrenn.Settings) error {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Extend)
	defer cancel()
	_, err := c.rpc.SetSandboxSettings(c.meant(ctx), hostwire.SettingsRequest(id, settings))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return wrenn.Errorf(wrenn.FailedPrecondition, "%s cannot change settings of sandboxes: its agent must be updated", c.peer)
	}
	return wire.FromConnect(c.peer, err)
}

// SetNetwork changes what the sandbox may reach, at once, and the secrets for its header
// rules; it may be paused.
func (c *Client) SetNetwork(ctx context.Context, id wrenn.SandboxID, policy wrenn.NetworkPolicy, secrets wrenn.SecretValues) error {
	res, err := call(ctx, c, c.deadlines.Extend, c.rpc.SetNetworkPolicy, hostwire.SetNetworkRequest(id, policy, secrets))
	if err == nil && policy.Proxy != nil && !res.GetKnowsProxies() {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old for egress proxies, and the sandbox connects without one: update it, or deny everything")
	}
	return err
}

// Egress returns what the sandbox reached and was denied after the event with that
// number, waiting for an event for at most wait. FailedPrecondition when the agent is
// of a version that has no log.
func (c *Client) Egress(ctx context.Context, id wrenn.SandboxID, after uint64, wait time.Duration) (wrenn.EgressLog, error) {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Extend+wait)
	defer cancel()
	res, err := c.rpc.ReadEgress(c.meant(ctx), hostwire.EgressRequest(id, after, wait))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return wrenn.EgressLog{}, wrenn.Errorf(wrenn.FailedPrecondition, "%s has no egress log: its agent must be updated", c.peer)
	}
	return hostwire.ParseEgress(res), wire.FromConnect(c.peer, err)
}

// ExplainEgress reports whether the sandbox may reach a host at a port, and why.
// FailedPrecondition when the agent is of a version that cannot.
func (c *Client) ExplainEgress(ctx context.Context, id wrenn.SandboxID, host string, port uint16) (wrenn.EgressExplanation, error) {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Extend)
	defer cancel()
	res, err := c.rpc.ExplainEgress(c.meant(ctx), hostwire.ExplainRequest(id, host, port))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return wrenn.EgressExplanation{}, wrenn.Errorf(wrenn.FailedPrecondition, "%s cannot explain: its agent must be updated", c.peer)
	}
	return hostwire.ParseExplanation(res), wire.FromConnect(c.peer, err)
}

// Metrics returns what the sandbox used from one moment to another, both included,
// oldest first. A zero time is no bound. FailedPrecondition when the agent is of a
// version that does not measure.
func (c *Client) Metrics(ctx context.Context, id wrenn.SandboxID, from, to time.Time) ([]wrenn.MetricsSample, error) {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Extend)
	defer cancel()
	res, err := c.rpc.ReadMetrics(c.meant(ctx), hostwire.MetricsRequest(id, from, to))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s has no metrics: its agent must be updated", c.peer)
	}
	return hostwire.ParseMetrics(res), wire.FromConnect(c.peer, err)
}
