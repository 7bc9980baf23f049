// Package hostclient asks a host's agent, by hostagent.v1. It speaks in the
// product's words: RPC messages do not leave it, errors are *wrenn.Error.
//
// Each operation has a deadline of its own, because they differ by orders of
// magnitude: one for all was either too short for a boot or too long for a
// question. Streams have none; a peer that is gone is found out by HTTP/2
// pings, one that moves nothing by a stall timer. A stream holds one frame
// and the receive window below, so a slow reader slows the sandbox's program.
package hostclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/wire"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

const (
	dialTimeout  = 5 * time.Second
	pingAfter    = 15 * time.Second // of silence on a connection
	pingTimeout  = 15 * time.Second
	streamWindow = 1 << 20 // per stream: what is on its way to a reader that does not read
	idleBulk     = 4       // connections that wait for the next download
	bulkBuffer   = 64 << 10
	uploadChunk  = 256 << 10
	maxMessage   = 64 << 20 // an inventory of 100,000 sandboxes; twice the output that Exec keeps
)

// Deadlines bound the operations. Zero values are the defaults.
type Deadlines struct {
	Ping      time.Duration // 5 s
	Inventory time.Duration // 30 s
	Create    time.Duration // 5 min: the host may boot by software emulation; also of a Fork
	Destroy   time.Duration // 1 min
	Pause     time.Duration // 5 min: 16 GiB of memory go to a slow disk; also of Resume, and of making and restoring a checkpoint
	Extend    time.Duration // 10 s
	Start     time.Duration // 1 min, until a stream's first answer
	Stall     time.Duration // 2 min, until a file's next piece
	ExecGrace time.Duration // 30 s on top of a command's own timeout
	Build     time.Duration // 1 h, of a template; the caller's to keep, see Client.Build
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
	// TLS, for https, is our certificate and whom we trust, asked for each
	// connection. It returns a fresh configuration.
	TLS       func() *tls.Config
	Deadlines Deadlines
}

// Client asks one host. It is safe for concurrent use.
type Client struct {
	id        wrenn.HostID
	peer      string // for messages
	rpc       hostagentv1connect.HostAgentServiceClient
	transport *http.Transport
	// downloads is for what the host sends much of: a connection each, by HTTP/1.1, costs both ends half of HTTP/2's work.
	downloads hostagentv1connect.HostAgentServiceClient
	bulk      *http.Transport
	codec     bulkCodec
	// dial opens a connection to the agent, by TLS where that is configured, for HTTP/1.1.
	dial      func(context.Context) (net.Conn, error)
	deadlines Deadlines
}

// New returns a client. It does not connect before the first call.
func New(cfg Config) (*Client, error) {
	calls, bulk := newTransport(cfg.TLS, http2), newTransport(cfg.TLS, http1) // streams go both ways: that takes HTTP/2
	bulk.MaxIdleConnsPerHost = idleBulk
	bulk.ReadBufferSize = bulkBuffer
	c := &Client{id: cfg.ID, peer: "host " + string(cfg.ID), transport: calls, bulk: bulk, codec: bulkCodec{new(sync.Pool)}, deadlines: cfg.Deadlines.WithDefaults()}
	var err error
	if c.rpc, err = newRPC(cfg.URL, calls); err != nil {
		return nil, err
	}
	if c.downloads, err = newRPC(cfg.URL, bulk, connect.WithCodec(c.codec)); err != nil {
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
		// Windows count compressed bytes: a program that repeats itself would fill memory a thousandfold before it is held up.
		connect.WithAcceptCompression("gzip", nil, nil))
	return hostagentv1connect.NewHostAgentServiceClient(&http.Client{Transport: transport}, base, opts...), nil
}

// newTransport returns one that speaks one protocol alone, named as ALPN names it.
func newTransport(identity func() *tls.Config, protocol string) *http.Transport {
	t := &http.Transport{
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		Protocols:   new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
			// The connection's own window stays what net/http makes it, 1 GiB: streams that nobody reads fill it, and a full one stops all.
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

// address returns the base URL; for a socket it changes how t dials.
func address(text string, t *http.Transport) (string, error) {
	invalid := wrenn.Errorf(wrenn.Invalid, "%.100q is no address of a host: expected http://, https:// or unix:///path", text)
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

// Close drops idle connections. Calls that run go on.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.bulk.CloseIdleConnections()
}

// call runs a unary call with its deadline.
func call[Req, Res any](ctx context.Context, c *Client, limit time.Duration, f func(context.Context, *Req) (*Res, error), req *Req) (*Res, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := f(ctx, req)
	return res, wire.FromConnect(c.peer, err)
}

// Ping asks the host about itself.
func (c *Client) Ping(ctx context.Context) (wrenn.HostInfo, error) {
	res, err := call(ctx, c, c.deadlines.Ping, c.rpc.Ping, &hostagentv1.PingRequest{})
	if err != nil {
		return wrenn.HostInfo{}, err
	}
	capacity := res.GetCapacity()
	return wrenn.HostInfo{
		Version: clean(res.GetVersion()), Instance: clean(res.GetInstance()), Driver: clean(res.GetDriver()),
		Capacity: wrenn.Capacity{
			Sandboxes: int(capacity.GetSandboxes()), SandboxesUsed: int(capacity.GetSandboxesUsed()),
			MemoryMiB: int64(capacity.GetMemoryMb()), MemoryMiBUsed: int64(capacity.GetMemoryMbUsed()),
			DiskMiB: int64(capacity.GetDiskMb()), DiskMiBFree: int64(capacity.GetDiskMbFree()),
		},
	}, nil
}

// Create returns when the sandbox runs. Repeating it is safe. When ctx ends
// first the host may have created it or not: Destroy it.
func (c *Client) Create(ctx context.Context, id wrenn.SandboxID, spec wrenn.SandboxSpec) error {
	_, err := call(ctx, c, c.deadlines.Create, c.rpc.CreateSandbox, &hostagentv1.CreateSandboxRequest{
		SandboxId: string(id), Template: spec.Template, Generation: string(spec.Generation), Vcpus: uint32(spec.VCPUs), MemoryMb: uint32(spec.MemoryMiB),
		TimeoutSec: seconds(spec.Timeout), OnTimeout: onTimeout(spec.OnTimeout), AutoResume: spec.AutoResume, Env: spec.Env,
	})
	return err
}

// Destroy returns when nothing is left of the sandbox; one that is not there is no error.
func (c *Client) Destroy(ctx context.Context, id wrenn.SandboxID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DestroySandbox, &hostagentv1.DestroySandboxRequest{SandboxId: string(id)})
	return err
}

// Pause writes the sandbox to its host's disk and frees its memory; twice is allowed.
func (c *Client) Pause(ctx context.Context, id wrenn.SandboxID) error {
	_, err := call(ctx, c, c.deadlines.Pause, c.rpc.PauseSandbox, &hostagentv1.PauseSandboxRequest{SandboxId: string(id)})
	return err
}

// Resume lets it go on; twice is allowed.
func (c *Client) Resume(ctx context.Context, id wrenn.SandboxID) error {
	_, err := call(ctx, c, c.deadlines.Pause, c.rpc.ResumeSandbox, &hostagentv1.ResumeSandboxRequest{SandboxId: string(id)})
	return err
}

// Extend sets for how long the sandbox lives without use, from now; 0 is for ever.
func (c *Client) Extend(ctx context.Context, id wrenn.SandboxID, timeout time.Duration) error {
	_, err := call(ctx, c, c.deadlines.Extend, c.rpc.ExtendSandbox, &hostagentv1.ExtendSandboxRequest{SandboxId: string(id), TimeoutSec: seconds(timeout)})
	return err
}

// seconds rounds up: a timeout is never shorter than asked.
func seconds(d time.Duration) uint32 {
	return uint32(max(0, min((d+time.Second-1)/time.Second, 1<<31-1)))
}
