package clienttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/api"
	"wrenn.dev/internal/controlplane/service"
)

const (
	key     = "e2b_0123456789012345678901234567890123456789"
	boxID   = "iabcdefghijklmnopqrst"
	otherID = "i00000000000000000000"
)

var made = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)

// fake stands in for the service; the API in front of it is the real one.
type fake struct {
	layers map[string]wrenn.NetworkPolicy // by "team" and "base"
	sessions

	mu       sync.Mutex // guards the fields below
	created  service.CreateSandbox
	listed   []service.ListSandboxes
	timeout  time.Duration
	forked   service.ForkSandbox
	built    service.BuildTemplate
	uploaded map[string]string
	deleted  wrenn.CheckpointID
	ran      wrenn.ExecCommand
	started  wrenn.ExecStart
	files    map[string][]byte

	stream *echo
	read   io.Reader

	silent error        // of starts, if set
	starts atomic.Int32 // that were asked for
}

func box(id wrenn.SandboxID) *wrenn.Sandbox {
	return &wrenn.Sandbox{
		ID: id, State: wrenn.Running,
		SandboxSpec: wrenn.SandboxSpec{
			Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512},
			EndOfLife: wrenn.EndOfLife{Timeout: 5 * time.Minute, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true,
		},
		Metadata: map[string]string{"user": "alice"}, CreatedAt: made, StartedAt: made, UpdatedAt: made,
	}
}

func (f *fake) ConnectPort(context.Context, service.Caller, wrenn.SandboxID, uint16) (net.Conn, error) {
	return nil, wrenn.ErrPortClosed
}

func (f *fake) Ingress(context.Context, wrenn.SandboxID) (wrenn.Ingress, error) {
	return wrenn.Ingress{}, nil
}

func (f *fake) TrafficToken(context.Context, wrenn.SandboxID) (string, error) { return "", nil }

func (f *fake) Authenticate(_ context.Context, secret string) (service.Caller, error) {
	if secret != key {
		return service.Caller{}, wrenn.Errorf(wrenn.Unauthenticated, "the API key is unknown or revoked")
	}
	return service.Caller{Team: "t", Key: "k", Scopes: wrenn.OperatorScopes}, nil
}

func (f *fake) Ready(context.Context) error { return nil }

func (f *fake) find(id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	if id == otherID {
		return nil, wrenn.Errorf(wrenn.NotFound, "sandbox not found")
	}
	return box(id), nil
}

func (f *fake) CreateSandbox(_ context.Context, _ service.Caller, req service.CreateSandbox) (*wrenn.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = req
	return box(boxID), nil
}

// ListSandboxes returns three pages of two.
func (f *fake) ListSandboxes(_ context.Context, _ service.Caller, req service.ListSandboxes) ([]wrenn.Sandbox, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listed = append(f.listed, req)
	n := len(f.listed)
	page := []wrenn.Sandbox{*box(wrenn.SandboxID(fmt.Sprintf("i%019d%d", n, 1))), *box(wrenn.SandboxID(fmt.Sprintf("i%019d%d", n, 2)))}
	if n == 3 {
		return page, "", nil
	}
	return page, fmt.Sprint("page", n+1), nil
}

func (f *fake) Sandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return f.find(id)
}

func (f *fake) DeleteSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID) error {
	_, err := f.find(id)
	return err
}

func (f *fake) PauseSandboxBy(_ context.Context, _ service.Caller, id wrenn.SandboxID, options wrenn.PauseOptions) (*wrenn.Sandbox, error) {
	sb, err := f.find(id)
	if err != nil || options == (wrenn.PauseOptions{}) {
		return sb, err
	}
	paused := *sb // by which the test knows how
	if options.Guest == wrenn.PauseForced {
		paused.EndCause, paused.Unresponsive = wrenn.CauseUser, &wrenn.Unresponsive{Since: sb.CreatedAt, Reason: "nothing answers"}
	}
	if options.DiskOnly {
		paused.OnTimeout = wrenn.PauseDiskOnTimeout
	}
	return &paused, nil
}

func (f *fake) BootSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return f.find(id)
}

func (f *fake) ResumeSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is running, not paused")
}

func (f *fake) SetTimeout(_ context.Context, _ service.Caller, id wrenn.SandboxID, d time.Duration) (*wrenn.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timeout = d
	return f.find(id)
}

// EgressLog returns one event after a known one, and what it was asked to wait as dropped.
func (f *fake) EgressLog(_ context.Context, _ service.Caller, _ wrenn.SandboxID, after uint64, wait time.Duration) (wrenn.EgressLog, error) {
	log := wrenn.EgressLog{Dropped: uint64(wait / time.Second)}
	if after > 0 {
		log.Events = []wrenn.EgressEvent{{Seq: after + 1, At: time.Unix(5, 0).UTC(), Protocol: wrenn.EgressTLS, Verdict: wrenn.EgressEnded, Name: "example.com", Port: 443, Sent: 1, Received: 2, Took: time.Second}}
	}
	return log, nil
}

func (f *fake) ExplainEgress(_ context.Context, _ service.Caller, _ wrenn.SandboxID, to string, port uint16) (wrenn.EgressExplanation, error) {
	return wrenn.EgressExplanation{Allowed: port == 443, Rule: "allow " + to, Reason: "why"}, nil
}

// SandboxMetrics returns one sample, at from.
func (f *fake) SandboxMetrics(_ context.Context, _ service.Caller, _ wrenn.SandboxID, from, _ time.Time) ([]wrenn.MetricsSample, error) {
	if from.IsZero() {
		return nil, nil
	}
	return []wrenn.MetricsSample{{At: from.UTC(), CPUs: 2, CPUPercent: 12.5, MemoryUsed: 1, MemoryTotal: 2, MemoryCache: 3, DiskUsed: 4, DiskTotal: 5}}, nil
}

func (f *fake) ChangeSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID, change service.ChangeSandbox) (*wrenn.Sandbox, error) {
	sb, err := f.find(id)
	if err == nil {
		sb.OnHostLoss, sb.CheckpointEvery = *change.OnHostLoss, *change.CheckpointEvery
		if change.OnTimeout != nil || change.AutoResume != nil {
			err = wrenn.Errorf(wrenn.Invalid, "more was to be changed than the caller said")
		}
	}
	return sb, err
}

func (f *fake) SetMetadata(_ context.Context, _ service.Caller, id wrenn.SandboxID, metadata map[string]string) (*wrenn.Sandbox, error) {
	sb, err := f.find(id)
	if err == nil {
		sb.Metadata = metadata
	}
	return sb, err
}

func (f *fake) Network(_ context.Context, _ service.Caller, id wrenn.SandboxID) (wrenn.NetworkPolicy, error) {
	b, err := f.find(id)
	if err != nil {
		return wrenn.NetworkPolicy{}, err
	}
	return b.Network.With(f.layers["team"], f.layers["base"]), nil
}

func (f *fake) TeamNetwork(context.Context, service.Caller) (wrenn.NetworkPolicy, error) {
	return f.layers["team"], nil
}

func (f *fake) SetTeamNetwork(_ context.Context, _ service.Caller, p wrenn.NetworkPolicy) error {
	f.layers = map[string]wrenn.NetworkPolicy{"team": p}
	return p.CheckLayer()
}

func (f *fake) TemplateNetwork(_ context.Context, _ service.Caller, template string) (wrenn.NetworkPolicy, error) {
	if template != "base" {
		return wrenn.NetworkPolicy{}, wrenn.Errorf(wrenn.NotFound, "no such template")
	}
	return f.layers["base"], nil
}

func (f *fake) SetTemplateNetwork(ctx context.Context, c service.Caller, template string, p wrenn.NetworkPolicy) error {
	_, err := f.TemplateNetwork(ctx, c, template)
	if err == nil {
		f.layers = map[string]wrenn.NetworkPolicy{"base": p}
	}
	return err
}

func (f *fake) SetNetwork(_ context.Context, _ service.Caller, id wrenn.SandboxID, p wrenn.NetworkPolicy) (*wrenn.Sandbox, error) {
	sb, err := f.find(id)
	if err == nil {
		sb.Network = p
	}
	return sb, err
}

func (f *fake) Logs(_ context.Context, _ service.Caller, id wrenn.SandboxID, query wrenn.ConsoleQuery) (io.ReadCloser, error) {
	if _, err := f.find(id); err != nil {
		return nil, err
	}
	return io.NopCloser(strings.NewReader(fmt.Sprintf("Linux, %+v", query))), nil
}

func (f *fake) Exec(_ context.Context, _ service.Caller, _ wrenn.SandboxID, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ran = cmd
	return &wrenn.ExecResult{Stdout: cmd.Stdin, Stderr: []byte("err"), ExitCode: 3, Status: "exit status 3", Duration: time.Second}, nil
}

func (f *fake) CheckExec(_ context.Context, _ service.Caller, id wrenn.SandboxID) error {
	_, err := f.find(id)
	return err
}

func (f *fake) AwaitRunning(ctx context.Context, _ service.Caller, _ wrenn.SandboxID) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (f *fake) StartExec(_ context.Context, _ service.Caller, _ wrenn.SandboxID, start wrenn.ExecStart) (service.ExecStream, error) {
	f.starts.Add(1)
	if f.silent != nil {
		return nil, f.silent
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = start
	if start.Cmd == "missing" {
		return nil, wrenn.Errorf(wrenn.NotFound, "no program missing in the sandbox")
	}
	f.stream = newEcho(start.PTY != nil)
	return f.stream, nil
}

func (f *fake) AttachExec(_ context.Context, _ service.Caller, _ wrenn.SandboxID, to wrenn.ExecAttach) (service.ExecStream, error) {
	if to.PID != echoPID {
		return nil, wrenn.Errorf(wrenn.NotFound, "no process %d", to.PID)
	}
	return newEcho(false), nil
}

func (f *fake) WriteFile(_ context.Context, _ service.Caller, id wrenn.SandboxID, user, path string, content io.Reader) error {
	if _, err := f.find(id); err != nil {
		return err
	}
	text, err := io.ReadAll(content)
	if err != nil {
		return &wrenn.Error{Code: wrenn.Unavailable, Message: "the upload broke", Err: err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files = map[string][]byte{user + ":" + path: text}
	return nil
}

func (f *fake) ReadFile(_ context.Context, _ service.Caller, id wrenn.SandboxID, _, _ string) (io.ReadCloser, error) {
	if _, err := f.find(id); err != nil {
		return nil, err
	}
	return io.NopCloser(f.read), nil
}

func (f *fake) Record(service.AuditEntry) {}

func (f *fake) AuditLog(_ context.Context, _ service.Caller, list service.ListAudit) ([]service.AuditEntry, string, error) {
	if list.Page == "" {
		return []service.AuditEntry{{At: made, Key: "k", Operation: "deleteSandbox", Status: 204}}, "1", nil
	}
	return []service.AuditEntry{{At: made, Key: "k", Operation: "createSandbox", Status: 201}}, "", nil
}

func (f *fake) Usage(_ context.Context, _ service.Caller, q service.UsageQuery) (*service.Usage, error) {
	used := service.UsedStep{Begins: q.From, Creates: 1, Sandboxes: 1500, MemoryMiB: 2000}
	return &service.Usage{From: q.From, To: q.To, Step: q.Step, Total: used, Steps: []service.UsedStep{used}}, nil
}

func (f *fake) Limits(context.Context, service.Caller) ([]service.TeamLimit, error) {
	return []service.TeamLimit{{Name: "sandboxes", Allowed: 100, Used: new(int64(3)), ChangedBy: service.ByConfiguration, Setting: "limits.sandboxes"}}, nil
}

func (f *fake) CreateKey(_ context.Context, _ service.Caller, want service.NewKey) (service.Key, string, error) {
	return service.Key{ID: "k2", Name: want.Name, Scopes: want.Scopes, Hint: "e2b_0123", CreatedAt: made}, key, nil
}

func (f *fake) ListKeys(context.Context, service.Caller) ([]service.Key, error) {
	return []service.Key{{ID: "k2", Name: "laptop", Hint: "e2b_0123", CreatedAt: made}}, nil
}

func (f *fake) RevokeKey(_ context.Context, _ service.Caller, id string) error {
	if id != "k2" {
		return wrenn.Errorf(wrenn.NotFound, "key not found")
	}
	return nil
}

// sessions are for browsers, which this package is not.
type sessions struct{}

func (sessions) OpenSession(context.Context, service.Caller) (none service.OpenedSession, err error) {
	return none, wrenn.Errorf(wrenn.Internal, "no browsers here")
}

func (sessions) AuthenticateSession(context.Context, string, string) (none service.Caller, err error) {
	return none, wrenn.Errorf(wrenn.Unauthenticated, "no browsers here")
}

func (sessions) EndSession(context.Context, string, string) error { return nil }

func (sessions) Identify(context.Context, service.Caller) (none service.Identity, err error) {
	return none, nil
}

func (sessions) WatchSandboxes(context.Context, service.Caller, func(service.Changes) error) error {
	return wrenn.Errorf(wrenn.Internal, "no test watches")
}

const echoPID = 42

// echo is a command that prints its input, and "WxH" and the names of signals.
type echo struct {
	events chan wrenn.ExecOutput
	closed chan struct{}
	once   sync.Once
	pty    bool
	taken  uint64 // of the input
}

func newEcho(pty bool) *echo {
	e := &echo{events: make(chan wrenn.ExecOutput, 64), closed: make(chan struct{}), pty: pty}
	e.events <- wrenn.ExecOutput{Started: &wrenn.ExecStarted{PID: echoPID}}
	e.events <- wrenn.ExecOutput{Keepalive: true}
	return e
}

func (e *echo) Receive() (wrenn.ExecOutput, error) {
	select {
	case out := <-e.events:
		return out, nil
	case <-e.closed:
		return wrenn.ExecOutput{}, errors.New("closed")
	}
}

func (e *echo) send(out wrenn.ExecOutput) error {
	select {
	case e.events <- out:
		return nil
	case <-e.closed:
		return errors.New("closed")
	}
}

func (e *echo) SendStdin(p []byte) error {
	e.taken += uint64(len(p))
	if err := e.send(wrenn.ExecOutput{Taken: new(e.taken)}); err != nil {
		return err
	}
	if e.pty {
		return e.send(wrenn.ExecOutput{PTY: bytes.Clone(p)})
	}
	return e.send(wrenn.ExecOutput{Stdout: bytes.Clone(p)})
}

func (*echo) Ack(uint64) error { return nil }
func (e *echo) Leave() error   { return e.Close() }

func (e *echo) CloseStdin() error {
	return e.send(wrenn.ExecOutput{Exit: &wrenn.ExecExit{Code: 7, Status: "exit status 7"}})
}

func (e *echo) Resize(s wrenn.PTYSize) error {
	return e.send(wrenn.ExecOutput{PTY: fmt.Appendf(nil, "%dx%d", s.Cols, s.Rows)})
}

func (e *echo) Signal(name string) error {
	if err := e.send(wrenn.ExecOutput{Stderr: []byte(name)}); err != nil {
		return err
	}
	return e.send(wrenn.ExecOutput{Exit: &wrenn.ExecExit{Code: -1, Status: "signal: terminated"}})
}

func (e *echo) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

// serve serves f through the real API, and returns a client of it.
func serve(t *testing.T, f *fake) *client.Client {
	t.Helper()
	server, err := api.New(api.Config{
		Service: f, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		ShutdownGrace: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return connect(t, "http://"+l.Addr().String(), key)
}

func connect(t *testing.T, url, key string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{URL: url, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSandboxes(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	got, err := c.CreateSandbox(t.Context(), client.CreateSandbox{
		Template: "base", VCPUs: 2, MemoryMB: 1024, Timeout: 1500 * time.Millisecond, Metadata: map[string]string{"a": "b"}, Env: map[string]string{"C": "d"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &client.Sandbox{
		ID: boxID, State: client.Running, Template: "base", VCPUs: 1, MemoryMB: 512, DiskMB: 10240, TimeoutSec: 300,
		OnTimeout: client.PauseOnTimeout, AutoResume: true, Metadata: map[string]string{"user": "alice"},
		Ports:     &client.Ports{URL: "/p/" + boxID + "/{port}/"},
		CreatedAt: made, StartedAt: made, UpdatedAt: made,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("CreateSandbox() (-want +got):\n%s", diff)
	}
	asked := service.CreateSandbox{Metadata: map[string]string{"a": "b"}, SandboxSpec: wrenn.SandboxSpec{
		Template: "base", Size: wrenn.Size{VCPUs: 2, MemoryMiB: 1024}, EndOfLife: wrenn.EndOfLife{Timeout: 2 * time.Second}, Env: map[string]string{"C": "d"},
	}}
	if diff := cmp.Diff(asked, f.created); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if got, err = c.Sandbox(t.Context(), boxID); err != nil || got.ID != boxID {
		t.Errorf("Sandbox() = %v, %v", got, err)
	}
	if err := c.DeleteSandbox(t.Context(), boxID); err != nil {
		t.Errorf("DeleteSandbox() = %v", err)
	}
	if _, err := c.SetTimeout(t.Context(), boxID, client.Never); err != nil || f.timeout >= 0 {
		t.Errorf("SetTimeout(Never) = %v, asked for %v", err, f.timeout)
	}
	if _, err := c.SetTimeout(t.Context(), boxID, 0); client.CodeOf(err) != client.InvalidRequest {
		t.Errorf("SetTimeout(0) = %v", err)
	}
}

func TestNetwork(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	if got, err := c.Network(t.Context(), boxID); err != nil || !cmp.Equal(got, &client.NetworkPolicy{Default: client.AllowByDefault, Allow: []string{}, Deny: []string{}}) {
		t.Errorf("Network() = %+v, %v", got, err)
	}
	policy := client.NetworkPolicy{Default: client.DenyByDefault, Allow: []string{"1.1.1.1"}, Deny: []string{"8.0.0.0/8"}}
	if got, err := c.SetNetwork(t.Context(), boxID, policy); err != nil || !cmp.Equal(got, &policy) {
		t.Errorf("SetNetwork() = %+v, %v", got, err)
	}
	if _, err := c.SetNetwork(t.Context(), boxID, client.NetworkPolicy{Allow: []string{"example.com"}}); client.CodeOf(err) != client.InvalidRequest {
		t.Errorf("SetNetwork(a name) = %v", err)
	}
	if _, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Network: &policy}); err != nil {
		t.Fatal(err)
	}
	if n := f.created.Network; !n.DenyByDefault || len(n.Allow) != 1 || len(n.Deny) != 1 {
		t.Errorf("asked for %+v", n)
	}
}

func TestMetrics(t *testing.T) {
	c := serve(t, &fake{})
	from := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	want := []client.MetricsSample{{
		Time: from, CPUs: 2, CPUPercent: 12.5, MemoryUsedBytes: 1, MemoryTotalBytes: 2, MemoryCacheBytes: 3, DiskUsedBytes: 4, DiskTotalBytes: 5,
	}}
	got, err := c.Metrics(t.Context(), boxID, client.MetricsOptions{Start: from})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Metrics() = %v (-want +got):\n%s", err, diff)
	}
	if got, err := c.Metrics(t.Context(), boxID, client.MetricsOptions{End: from.Add(-time.Second)}); err != nil || len(got) != 0 {
		t.Errorf("Metrics(before) = %v, %v", got, err)
	}
	if _, err := c.Metrics(t.Context(), "zzz", client.MetricsOptions{}); client.CodeOf(err) != client.NotFound {
		t.Errorf("Metrics(no id) = %v", err)
	}
}

func TestSandboxesFollowPages(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	var ids []string
	list := client.ListSandboxes{States: []client.State{client.Running, client.Paused}, Metadata: map[string]string{"user": "alice"}, PageSize: 2}
	for s, err := range c.Sandboxes(t.Context(), list) {
		if err != nil {
			t.Fatal(err)
		}
		if ids = append(ids, s.ID); len(ids) == 5 {
			break
		}
	}
	if len(ids) != 5 || ids[4] != "i00000000000000000031" {
		t.Errorf("listed %q", ids)
	}
	want := service.ListSandboxes{States: []wrenn.State{wrenn.Running, wrenn.Paused}, Metadata: map[string]string{"user": "alice"}, Limit: 2, Page: "page3"}
	if diff := cmp.Diff(want, f.listed[2]); diff != "" {
		t.Errorf("third page (-want +got):\n%s", diff)
	}
}

func TestUsageAndLimits(t *testing.T) {
	c := serve(t, &fake{})
	use, err := c.Usage(t.Context(), client.UsageQuery{From: made, To: made.Add(time.Hour), Step: "hour", Team: "team"})
	if err != nil {
		t.Fatal(err)
	}
	used := client.Used{Creates: 1, SandboxSeconds: 1.5, MemoryMiBSeconds: 2}
	want := &client.Usage{From: made, To: made.Add(time.Hour), Step: "hour", Total: used, Steps: []client.UsedInStep{{From: made, Used: used}}}
	if diff := cmp.Diff(want, use); diff != "" {
		t.Errorf("the use (-want +got):\n%s", diff)
	}
	limits, err := c.Limits(t.Context())
	if diff := cmp.Diff([]client.Limit{{Name: "sandboxes", Of: "team", Allowed: 100, Used: new(3.0), ChangedBy: "configuration", Setting: "limits.sandboxes"}}, limits); diff != "" || err != nil {
		t.Errorf("the limits (-want +got):\n%s%v", diff, err)
	}
}

func TestKeys(t *testing.T) {
	c := serve(t, &fake{})
	var operations []string
	for e, err := range c.AuditLog(t.Context(), made.Add(-time.Hour), time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		operations = append(operations, e.Operation)
	}
	if diff := cmp.Diff([]string{"deleteSandbox", "createSandbox"}, operations); diff != "" {
		t.Errorf("the audit log (-want +got):\n%s", diff)
	}
	made, secret, err := c.CreateKey(t.Context(), client.CreateKey{Name: "laptop"})
	if err != nil || secret != key || made.Name != "laptop" {
		t.Errorf("CreateKey() = %+v, %q, %v", made, secret, err)
	}
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 1 || !keys[0].LastUsedAt.IsZero() {
		t.Errorf("Keys() = %+v, %v", keys, err)
	}
	if err := c.RevokeKey(t.Context(), "k2"); err != nil {
		t.Error(err)
	}
	if err := c.RevokeKey(t.Context(), "k3"); client.CodeOf(err) != client.NotFound {
		t.Errorf("RevokeKey of an unknown key = %v", err)
	}
}

func TestErrors(t *testing.T) {
	c := serve(t, &fake{})
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, "<html>")
	}))
	t.Cleanup(proxy.Close)
	redirect := httptest.NewServer(http.RedirectHandler(proxy.URL, http.StatusTemporaryRedirect))
	t.Cleanup(redirect.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	get := func(url, key string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := connect(t, url, key).Sandbox(ctx, boxID)
			return err
		}
	}
	for name, test := range map[string]struct {
		do     func(context.Context) error
		code   client.Code
		status int
	}{
		"not there":     {func(ctx context.Context) error { _, err := c.Sandbox(ctx, otherID); return err }, client.NotFound, 404},
		"no id":         {func(ctx context.Context) error { _, err := c.Sandbox(ctx, "../keys"); return err }, client.NotFound, 404},
		"invalid state": {func(ctx context.Context) error { _, err := c.ResumeSandbox(ctx, boxID); return err }, client.InvalidState, 409},
		"wrong key":     {get(c.URL(), "e2b_nothing"), client.Unauthorized, 401},
		"stream's key": {func(ctx context.Context) error {
			_, err := connect(t, c.URL(), "x").Start(ctx, boxID, client.Command{Cmd: "true"}, client.StartOptions{})
			return err
		}, client.Unauthorized, 401},
		"no program": {func(ctx context.Context) error {
			_, err := c.Start(ctx, boxID, client.Command{Cmd: "missing"}, client.StartOptions{})
			return err
		}, client.NotFound, 0},
		"a proxy's page": {get(proxy.URL, key), client.Unavailable, 502},
		"a redirect":     {get(redirect.URL, key), client.Internal, 307},
		"nobody there":   {get(gone.URL, key), client.Unavailable, 0},
		"no address":     {func(context.Context) error { _, err := client.New(client.Config{URL: "localhost:80"}); return err }, client.InvalidRequest, 0},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.do(t.Context())
			failure, ok := errors.AsType[*client.Error](err)
			if !ok || failure.Code != test.code || failure.Status != test.status || failure.Message == "" {
				t.Errorf("got %#v, want code %s and status %d", err, test.code, test.status)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Sandbox(ctx, boxID); !errors.Is(err, context.Canceled) || client.CodeOf(err) != "" {
			t.Errorf("got %v", err)
		}
	})
}

// noise is bytes that are not text.
var noise = bytes.Repeat([]byte{0xff, 0, '\r', '\n', 0xc3, 1}, 300<<10)

func TestExec(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	input := noise[:100<<10]
	got, err := c.Exec(t.Context(), boxID, client.Command{
		Cmd: "cat", Args: []string{"-"}, Env: map[string]string{"A": "b"}, Cwd: "/tmp", User: "root", Timeout: time.Minute, Stdin: input,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &client.Result{Stdout: input, Stderr: []byte("err"), ExitCode: 3, Status: "exit status 3", Duration: time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Exec() (-want +got):\n%s", diff)
	}
	ran := wrenn.ExecCommand{Cmd: "cat", Args: []string{"-"}, Env: map[string]string{"A": "b"}, Cwd: "/tmp", User: "root", Timeout: time.Minute, Stdin: input}
	if diff := cmp.Diff(ran, f.ran); diff != "" {
		t.Errorf("what ran (-want +got):\n%s", diff)
	}
}

func TestStreamIsByteEqual(t *testing.T) {
	f := &fake{}
	s, err := serve(t, f).Start(t.Context(), boxID, client.Command{Cmd: "cat", Timeout: time.Hour}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.PID() != echoPID {
		t.Errorf("PID() = %d", s.PID())
	}
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(noise)
		sent <- errors.Join(err, s.CloseStdin())
	}()
	var out, errOut bytes.Buffer
	exit, err := s.Copy(&out, &errOut)
	if err != nil || exit != (client.Exit{Code: 7, Status: "exit status 7"}) {
		t.Errorf("Copy() = %+v, %v", exit, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(out.Bytes(), noise) || errOut.Len() != 0 {
		t.Errorf("%d bytes went in, %d and %d others came out", len(noise), out.Len(), errOut.Len())
	}
	if _, err := s.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("Receive() after the exit = %v", err)
	}
	if !f.started.WantStdin || f.started.Timeout != time.Hour {
		t.Errorf("started %+v", f.started)
	}
}

func TestStreamOfTerminal(t *testing.T) {
	f := &fake{}
	s, err := serve(t, f).Start(t.Context(), boxID, client.Command{Cmd: "sh"}, client.StartOptions{PTY: &client.Size{Cols: 100, Rows: 40}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if f.started.PTY == nil || *f.started.PTY != (wrenn.PTYSize{Cols: 100, Rows: 40}) {
		t.Errorf("started with %+v", f.started.PTY)
	}
	if err := errors.Join(s.Resize(client.Size{Cols: 7, Rows: 8}), s.Signal(client.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	var out, errOut strings.Builder
	exit, err := s.Copy(&out, &errOut)
	if err != nil || exit.Code != -1 || out.String() != "7x8" || errOut.String() != "SIGTERM" {
		t.Errorf("Copy() = %+v, %v; printed %q and %q", exit, err, out.String(), errOut.String())
	}
}

func TestAttach(t *testing.T) {
	c := serve(t, &fake{})
	s, err := c.Attach(t.Context(), boxID, echoPID)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if _, err := s.Receive(); client.CodeOf(err) != client.Unavailable {
		t.Errorf("Receive() after Close = %v", err)
	}
	if _, err := c.Attach(t.Context(), boxID, 1); client.CodeOf(err) != client.NotFound {
		t.Errorf("Attach() to an unknown process = %v", err)
	}
}

// A start in a sandbox that does not answer is not tried again.
func TestStartInAnUnresponsiveSandbox(t *testing.T) {
	f := &fake{silent: wrenn.Unresponsive{Since: made, Reason: "nothing answers"}.Refusal(boxID)}
	c := serve(t, f)
	_, err := c.Start(t.Context(), boxID, client.Command{Cmd: "true"}, client.StartOptions{})
	if client.CodeOf(err) != client.NotResponding || !strings.Contains(err.Error(), "nothing answers") {
		t.Errorf("Start() = %v", err)
	}
	if n := f.starts.Load(); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
}

func TestStreamEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := serve(t, &fake{}).Start(ctx, boxID, client.Command{Cmd: "cat"}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if _, err := s.Receive(); !errors.Is(err, context.Canceled) {
		t.Errorf("Receive() = %v", err)
	}
}

func TestFiles(t *testing.T) {
	f := &fake{read: bytes.NewReader(noise)}
	c := serve(t, f)
	if err := c.WriteFile(t.Context(), boxID, "/tmp/ä \"x\"", bytes.NewReader(noise), client.FileOptions{User: "root"}); err != nil {
		t.Fatal(err)
	}
	if got := f.files["root:/tmp/ä \"x\""]; !bytes.Equal(got, noise) {
		t.Errorf("wrote %d bytes of %d to %q", len(got), len(noise), slices.Collect(maps.Keys(f.files)))
	}
	r, err := c.ReadFile(t.Context(), boxID, "/tmp/x", client.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, noise) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(noise), err)
	}
}

// TestNamesThatAreNotText are refused before anything is sent, not changed.
func TestNamesThatAreNotText(t *testing.T) {
	c, err := client.New(client.Config{URL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	_, read := c.ReadFile(t.Context(), "i7hq2m9x4kd81ncvb3t5z", "/a\xff", client.FileOptions{})
	write := c.WriteFile(t.Context(), "i7hq2m9x4kd81ncvb3t5z", "/a\xff", strings.NewReader(""), client.FileOptions{})
	for name, err := range map[string]error{"read": read, "write": write} {
		if client.CodeOf(err) != client.InvalidRequest || !strings.Contains(err.Error(), `\xff`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFilesThatBreak(t *testing.T) {
	own := errors.New("the disk is broken")
	f := &fake{read: io.MultiReader(bytes.NewReader(noise), iotest.ErrReader(own))}
	c := serve(t, f)
	t.Run("cut download", func(t *testing.T) {
		r, err := c.ReadFile(t.Context(), boxID, "/x", client.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if n, err := io.Copy(io.Discard, r); client.CodeOf(err) != client.Unavailable {
			t.Errorf("read %d bytes of a file that was cut, %v", n, err)
		}
	})
	t.Run("source of an upload", func(t *testing.T) {
		err := c.WriteFile(t.Context(), boxID, "/x", io.MultiReader(bytes.NewReader(noise), iotest.ErrReader(own)), client.FileOptions{})
		if !errors.Is(err, own) || f.files != nil {
			t.Errorf("WriteFile() = %v, wrote %d files", err, len(f.files))
		}
	})
	t.Run("refused upload", func(t *testing.T) {
		err := c.WriteFile(t.Context(), otherID, "/x", bytes.NewReader(noise), client.FileOptions{})
		if client.CodeOf(err) != client.NotFound {
			t.Errorf("WriteFile() = %v", err)
		}
	})
	t.Run("a response without an end", func(t *testing.T) {
		old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\nhalf a fi")
			conn.Close()
		}))
		defer old.Close()
		if r, err := connect(t, old.URL, key).ReadFile(t.Context(), boxID, "/x", client.FileOptions{}); err == nil {
			r.Close()
			t.Error("a response that may be cut was accepted as a file")
		}
	})
}

func TestLogs(t *testing.T) {
	c := serve(t, &fake{})
	for want, opts := range map[string]client.LogsOptions{
		"Linux, {Follow:false Since:0001-01-01 00:00:00 +0000 UTC}":              {},
		"Linux, {Follow:true Since:0001-01-01 00:00:00 +0000 UTC}":               {Follow: true},
		"Linux, {Follow:false Since:" + made.Add(time.Nanosecond).String() + "}": {Since: made.Add(time.Nanosecond).In(time.FixedZone("east", 3600))},
	} {
		r, err := c.Logs(t.Context(), boxID, opts)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if string(got) != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if _, err := c.Logs(t.Context(), otherID, client.LogsOptions{}); client.CodeOf(err) != client.NotFound {
		t.Errorf("logs of another sandbox: %v", err)
	}
}

// A command that JSON cannot hold is refused before anything is sent.
func TestCommandThatIsNotText(t *testing.T) {
	c := serve(t, &fake{})
	for name, cmd := range map[string]client.Command{
		"argument":    {Cmd: "echo", Args: []string{"fine", "\xff"}},
		"path":        {Cmd: "/bin/\xff"},
		"directory":   {Cmd: "true", Cwd: "/tmp/\xff"},
		"environment": {Cmd: "true", Env: map[string]string{"A\xff": ""}},
	} {
		_, err := c.Exec(t.Context(), boxID, cmd)
		if answer, ok := errors.AsType[*client.Error](err); !ok || answer.Code != client.InvalidRequest || !strings.Contains(answer.Message, "UTF-8") {
			t.Errorf("%s: Exec() = %v", name, err)
		}
		if _, err := c.Start(t.Context(), boxID, cmd, client.StartOptions{}); err == nil || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("%s: Start() = %v", name, err)
		}
	}
}

func TestNetworkLog(t *testing.T) {
	c := serve(t, &fake{})
	log, err := c.NetworkLog(t.Context(), boxID, client.NetworkLogOptions{})
	if err != nil || len(log.Events) != 0 || log.Dropped != 0 {
		t.Errorf("NetworkLog() = %+v, %v", log, err)
	}
	log, err = c.NetworkLog(t.Context(), boxID, client.NetworkLogOptions{After: 5, Wait: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	want := &client.NetworkLog{Dropped: 3, Events: []client.NetworkEvent{
		{Seq: 6, Time: time.Unix(5, 0).UTC(), Protocol: "tls", Verdict: "ended", Name: "example.com", Port: 443, SentBytes: 1, ReceivedBytes: 2, DurationMs: 1000},
	}}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Error(diff)
	}
	e, err := c.ExplainNetwork(t.Context(), boxID, "example.com", 443)
	if err != nil || !e.Allowed || e.Rule != "allow example.com" || e.Reason != "why" || len(e.Addresses) != 0 {
		t.Errorf("ExplainNetwork() = %+v, %v", e, err)
	}
}

// TestVersionAndMetadata: the version needs no key, and metadata is replaced.
func TestVersionAndMetadata(t *testing.T) {
	c := serve(t, &fake{})
	if v, err := c.Version(t.Context()); err != nil || v.Version == "" {
		t.Errorf("Version() = %+v, %v", v, err)
	}
	for _, metadata := range []map[string]string{{"user": "bob"}, {}} {
		sb, err := c.SetMetadata(t.Context(), boxID, metadata)
		if err != nil || len(sb.Metadata) != len(metadata) || sb.Metadata["user"] != metadata["user"] {
			t.Errorf("SetMetadata(%v) = %+v, %v", metadata, sb, err)
		}
	}
}

// TestChangeSandbox sends what is to be changed, and nothing else.
func TestChangeSandbox(t *testing.T) {
	c := serve(t, &fake{})
	for _, every := range []time.Duration{5 * time.Minute, 0} {
		sb, err := c.ChangeSandbox(t.Context(), boxID, client.ChangeSandbox{OnHostLoss: client.RestoreOnHostLoss, CheckpointEvery: &every})
		if err != nil || sb.OnHostLoss != client.RestoreOnHostLoss || sb.CheckpointEverySec != int64(every/time.Second) {
			t.Errorf("ChangeSandbox() = %+v, %v", sb, err)
		}
	}
}
