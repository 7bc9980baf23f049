package api

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
)

const (
	testKey    = "e2b_0123456789012345678901234567890123456789"
	testID     = "iabcdefghijklmnopqrst"
	missingID  = "i00000000000000000000"
	pausedID   = "ipppppppppppppppppppp"
	failingID  = "ifffffffffffffffffff"
	testTeam   = wrenn.TeamID("11111111-1111-4111-8111-111111111111")
	testKeyID  = "22222222-2222-4222-8222-222222222222"
	brokenFile = "/broken"

	testCheckpoint  = "scccccccccccccccccccc"
	otherCheckpoint = "soooooooooooooooooooo"
)

var testTime = time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)

// stub is the service for tests of the API: a running sandbox, a paused one, files
// in a map, and the error fail.
type stub struct {
	layers map[string]wrenn.NetworkPolicy // by "team" and "base"
	fail   error                          // of every call but Authenticate; nil is none

	mu       sync.Mutex // guards what follows
	created  service.CreateSandbox
	listed   service.ListSandboxes
	ran      wrenn.ExecCommand
	started  wrenn.ExecStart
	attached wrenn.ExecAttach
	timeout  time.Duration
	files    map[string]string
	user     string
	forked   service.ForkSandbox
	built    service.BuildTemplate
	audited  []service.AuditEntry

	signedOut   bool           // the session has ended
	sessionUses int            // it ends after so many requests; 0 is never
	runs        chan struct{}  // AwaitRunning waits for it
	waking      chan struct{}  // StartExec says that it begins, and waits until told to go on; nil: it does neither
	box         *wrenn.Sandbox // in place of the one that runs; nil is none
	result      wrenn.ExecResult
	next        string
	copyErr     error                     // of the second copy of a fork
	checkErr    error                     // of CheckExec
	bare        bool                      // there are no checkpoints
	stream      func() service.ExecStream // of StartExec and AttachExec
	read        func(path string) (io.ReadCloser, error)
	panics      bool
	port        string // address of the program that ConnectPort reaches; "" is none
	ingress     wrenn.Ingress
	cut         error // why the host cuts connections to it; nil when it does not
}

func (s *stub) Ingress(context.Context, wrenn.SandboxID) (wrenn.Ingress, error) {
	return s.ingress, s.fail
}

func (s *stub) TrafficToken(_ context.Context, id wrenn.SandboxID) (string, error) {
	return "traffic-token-of-" + string(id), nil
}

// cutConn is a connection that the host cuts.
type cutConn struct {
	*net.TCPConn

	why error
}

func (c *cutConn) WhyCut(context.Context) error { return c.why }

func (s *stub) ConnectPort(ctx context.Context, _ service.Caller, id wrenn.SandboxID, _ uint16) (net.Conn, error) {
	switch {
	case id == missingID:
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no sandbox %s", id)
	case s.fail != nil:
		return nil, s.fail
	case s.port == "":
		return nil, wrenn.ErrPortClosed
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.port)
	if err != nil {
		return nil, err
	}
	return &cutConn{conn.(*net.TCPConn), s.cut}, nil
}

// readerKey is of a key that may only read.
const readerKey = "e2b_9876543210987654321098765432109876543210"

var testCaller = service.Caller{Team: testTeam, Key: testKeyID, Scopes: wrenn.OperatorScopes}

func (s *stub) Authenticate(_ context.Context, secret string) (service.Caller, error) {
	if secret == readerKey {
		return service.Caller{Team: testTeam, Key: testKeyID, Scopes: 1}, nil
	}
	if secret != testKey {
		return service.Caller{}, wrenn.Errorf(wrenn.Unauthenticated, "the API key is unknown or revoked")
	}
	return testCaller, nil
}

const (
	testCookie = "0123456789012345678901234567890123456789"
	testProof  = "abcdefabcdefabcdefabcdefabcdefabcdefabcd"
)

func (s *stub) OpenSession(_ context.Context, c service.Caller) (service.OpenedSession, error) {
	if c.Key != testKeyID {
		return service.OpenedSession{}, errors.New("another caller")
	}
	opened := service.OpenedSession{ExpiresAt: testTime}
	opened.Cookie, opened.Proof = testCookie, testProof
	return opened, s.fail
}

func (s *stub) AuthenticateSession(_ context.Context, cookie, proof string) (service.Caller, error) {
	if cookie != testCookie || proof != testProof || s.signedOut {
		return service.Caller{}, wrenn.Errorf(wrenn.Unauthenticated, "the session has ended")
	}
	s.signedOut = s.sessionUses == 1
	s.sessionUses--
	return testCaller, nil
}

func (s *stub) EndSession(_ context.Context, cookie, proof string) error {
	s.signedOut = s.signedOut || cookie == testCookie && proof == testProof
	return s.fail
}

func (s *stub) Identify(_ context.Context, c service.Caller) (service.Identity, error) {
	return service.Identity{Team: "team", Key: c.Key, KeyName: "laptop", Scopes: c.Scopes}, s.fail
}

// WatchSandboxes tells of one sandbox, and that another is dropped; then it is the end.
func (s *stub) WatchSandboxes(_ context.Context, _ service.Caller, send func(service.Changes) error) error {
	if s.fail != nil {
		return s.fail
	}
	for _, changes := range []service.Changes{
		{First: true, Sandboxes: []wrenn.Sandbox{*box(testID, wrenn.Running)}}, {}, {Dropped: []wrenn.SandboxID{missingID}},
	} {
		if err := send(changes); err != nil {
			return err
		}
	}
	return errors.New("the end")
}

func (s *stub) Ready(context.Context) error { return s.fail }

func box(id wrenn.SandboxID, state wrenn.State) *wrenn.Sandbox {
	return &wrenn.Sandbox{
		ID: id, Team: testTeam, Host: "h1", State: state, Metadata: map[string]string{"user": "alice"},
		SandboxSpec: wrenn.SandboxSpec{
			Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}, Env: map[string]string{"SECRET": "s3cr3t"},
			EndOfLife: wrenn.EndOfLife{Timeout: 5 * time.Minute, OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true,
		},
		CreatedAt: testTime, StartedAt: testTime, LastActiveAt: testTime, UpdatedAt: testTime,
	}
}

// asleep is a paused sandbox that its use does not resume.
func asleep(id wrenn.SandboxID) *wrenn.Sandbox {
	b := box(id, wrenn.Paused)
	b.AutoResume = false
	return b
}

// find is the first step of every call. It checks that the caller was passed on.
func (s *stub) find(c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	if c != testCaller {
		return nil, errors.New("the caller got lost")
	}
	if s.panics {
		panic("the stub panics")
	}
	switch {
	case s.fail != nil:
		return nil, s.fail
	case id == testID && s.box != nil:
		return s.box, nil
	case id == testID:
		return box(id, wrenn.Running), nil
	case id == pausedID:
		return asleep(id), nil
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "sandbox not found")
}

func (s *stub) CreateSandbox(_ context.Context, c service.Caller, req service.CreateSandbox) (*wrenn.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = req
	return s.find(c, testID)
}

func (s *stub) ListSandboxes(_ context.Context, c service.Caller, req service.ListSandboxes) ([]wrenn.Sandbox, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed = req
	b, err := s.find(c, testID)
	if err != nil {
		return nil, "", err
	}
	return []wrenn.Sandbox{*b}, s.next, nil
}

func (s *stub) Sandbox(_ context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.find(c, id)
}

func (s *stub) DeleteSandbox(_ context.Context, c service.Caller, id wrenn.SandboxID) error {
	_, err := s.find(c, id)
	return err
}

func (s *stub) PauseSandboxBy(_ context.Context, c service.Caller, id wrenn.SandboxID, options wrenn.PauseOptions) (*wrenn.Sandbox, error) {
	sb, err := s.find(c, id)
	if err != nil || options == (wrenn.PauseOptions{}) {
		return sb, err
	}
	paused := *sb // by which the test knows how
	if options.Guest == wrenn.PauseForced {
		paused.Unresponsive, paused.EndCause = &wrenn.Unresponsive{Since: testTime, Reason: "nothing answers"}, wrenn.CauseUser
	}
	if options.DiskOnly {
		paused.OnTimeout = wrenn.PauseDiskOnTimeout
	}
	return &paused, nil
}

func (s *stub) BootSandbox(_ context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.find(c, id)
}

func (s *stub) ResumeSandbox(_ context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.find(c, id)
}

func (s *stub) ForkSandbox(_ context.Context, c service.Caller, id wrenn.SandboxID, req service.ForkSandbox) (*service.Forked, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forked = req
	b, err := s.find(c, id)
	if err != nil {
		return nil, err
	}
	out := &service.Forked{}
	for i := range req.Count {
		if i > 0 {
			out.Failed = append(out.Failed, service.FailedCopy{ID: missingID, Err: s.copyErr})
			continue
		}
		copied := *b
		copied.Parent = id
		out.Sandboxes = append(out.Sandboxes, copied)
	}
	return out, nil
}

func (s *stub) CreateCheckpoint(_ context.Context, c service.Caller, id wrenn.SandboxID, name string) (*wrenn.Checkpoint, error) {
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	return &wrenn.Checkpoint{ID: testCheckpoint, Name: name, CreatedAt: testTime, SizeBytes: 4096}, nil
}

func (s *stub) Checkpoints(_ context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Checkpoints, error) {
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	if s.bare {
		return &wrenn.Checkpoints{}, nil
	}
	return &wrenn.Checkpoints{Head: testCheckpoint, DiskBytes: new(int64(5120)), List: []wrenn.Checkpoint{
		{ID: otherCheckpoint, Name: "a", CreatedAt: testTime, SizeBytes: 4096, OwnBytes: new(int64(1024))}, {ID: testCheckpoint, Parent: otherCheckpoint, CreatedAt: testTime},
	}}, nil
}

func (s *stub) RestoreCheckpoint(_ context.Context, c service.Caller, id wrenn.SandboxID, cp wrenn.CheckpointID) (*wrenn.Sandbox, error) {
	b, err := s.find(c, id)
	if err == nil && cp != testCheckpoint {
		return nil, wrenn.Errorf(wrenn.NotFound, "no such checkpoint")
	}
	return b, err
}

func (s *stub) DeleteCheckpoint(_ context.Context, c service.Caller, id wrenn.SandboxID, _ wrenn.CheckpointID) error {
	_, err := s.find(c, id)
	return err
}

func (s *stub) SetTimeout(_ context.Context, c service.Caller, id wrenn.SandboxID, d time.Duration) (*wrenn.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timeout = d
	return s.find(c, id)
}

func (s *stub) Network(_ context.Context, c service.Caller, id wrenn.SandboxID) (wrenn.NetworkPolicy, error) {
	b, err := s.find(c, id)
	if err != nil {
		return wrenn.NetworkPolicy{}, err
	}
	return b.Network.With(s.layers["team"], s.layers["base"]), nil
}

func (s *stub) TeamNetwork(context.Context, service.Caller) (wrenn.NetworkPolicy, error) {
	return s.layers["team"], nil
}

func (s *stub) SetTeamNetwork(_ context.Context, _ service.Caller, p wrenn.NetworkPolicy) error {
	s.layers = map[string]wrenn.NetworkPolicy{"team": p}
	return p.CheckLayer()
}

func (s *stub) TemplateNetwork(_ context.Context, _ service.Caller, template string) (wrenn.NetworkPolicy, error) {
	if template != "base" {
		return wrenn.NetworkPolicy{}, wrenn.Errorf(wrenn.NotFound, "no such template")
	}
	return s.layers["base"], nil
}

func (s *stub) SetTemplateNetwork(ctx context.Context, c service.Caller, template string, p wrenn.NetworkPolicy) error {
	_, err := s.TemplateNetwork(ctx, c, template)
	if err == nil {
		s.layers = map[string]wrenn.NetworkPolicy{"base": p}
	}
	return err
}

func (s *stub) SetNetwork(_ context.Context, c service.Caller, id wrenn.SandboxID, p wrenn.NetworkPolicy) (*wrenn.Sandbox, error) {
	b, err := s.find(c, id)
	if err != nil {
		return nil, err
	}
	changed := *b
	changed.Network = p
	return &changed, nil
}

func (s *stub) ChangeSandbox(_ context.Context, c service.Caller, id wrenn.SandboxID, change service.ChangeSandbox) (*wrenn.Sandbox, error) {
	b, err := s.find(c, id)
	if err != nil {
		return nil, err
	}
	changed := *b
	if change.OnTimeout != nil {
		changed.OnTimeout = *change.OnTimeout
	}
	if change.AutoResume != nil {
		changed.AutoResume = *change.AutoResume
	}
	if change.OnHostLoss != nil {
		changed.OnHostLoss = *change.OnHostLoss
	}
	if change.CheckpointEvery != nil {
		changed.CheckpointEvery = *change.CheckpointEvery
	}
	return &changed, nil
}

func (s *stub) SetMetadata(_ context.Context, c service.Caller, id wrenn.SandboxID, metadata map[string]string) (*wrenn.Sandbox, error) {
	b, err := s.find(c, id)
	if err != nil {
		return nil, err
	}
	changed := *b
	changed.Metadata = metadata
	return &changed, nil
}

// EgressLog returns an event whose number says what was asked for.
func (s *stub) EgressLog(_ context.Context, c service.Caller, id wrenn.SandboxID, after uint64, wait time.Duration) (wrenn.EgressLog, error) {
	_, err := s.find(c, id)
	log := wrenn.EgressLog{Dropped: uint64(wait / time.Second)}
	if after > 0 {
		log.Events = []wrenn.EgressEvent{
			{Seq: after + 1, At: time.Unix(5, 0).UTC(), Protocol: wrenn.EgressTLS, Verdict: wrenn.EgressEnded, Name: "example.com", Address: netip.MustParseAddr("192.0.2.1"), Port: 443, Sent: 1, Received: 2, Took: 3 * time.Millisecond},
			{Seq: after + 2, At: time.Unix(6, 0).UTC(), Protocol: wrenn.EgressICMP, Verdict: wrenn.EgressDenied, Reason: "no"},
		}
	}
	return log, err
}

func (s *stub) ExplainEgress(_ context.Context, c service.Caller, id wrenn.SandboxID, to string, port uint16) (wrenn.EgressExplanation, error) {
	if _, err := s.find(c, id); err != nil {
		return wrenn.EgressExplanation{}, err
	}
	if err := wrenn.CheckEgressHost(to); err != nil {
		return wrenn.EgressExplanation{}, err
	}
	return wrenn.EgressExplanation{
		Allowed: port == 443, Rule: "allow " + to, Reason: "why",
		Addresses: []wrenn.EgressAddress{{Address: netip.MustParseAddr("192.0.2.1"), Allowed: true, Rule: "r"}},
	}, nil
}

// SandboxMetrics returns a sample of each bound that is given.
func (s *stub) SandboxMetrics(_ context.Context, c service.Caller, id wrenn.SandboxID, from, to time.Time) ([]wrenn.MetricsSample, error) {
	_, err := s.find(c, id)
	var samples []wrenn.MetricsSample
	for _, at := range []time.Time{from, to} {
		if !at.IsZero() {
			samples = append(samples, wrenn.MetricsSample{At: at.UTC(), CPUs: 2, CPUPercent: 12.5, MemoryUsed: 1, MemoryTotal: 2, MemoryCache: 3, DiskUsed: 4, DiskTotal: 5})
		}
	}
	return samples, err
}

func (s *stub) Logs(ctx context.Context, c service.Caller, id wrenn.SandboxID, query wrenn.ConsoleQuery) (io.ReadCloser, error) {
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	said := io.Reader(strings.NewReader("Linux\r\n\xff\x00"))
	if query.Follow {
		said = io.MultiReader(said, untilDone{ctx})
	}
	return io.NopCloser(said), nil
}

// untilDone reads nothing until its context ends.
type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, context.Cause(u.ctx)
}

func (s *stub) Exec(_ context.Context, c service.Caller, id wrenn.SandboxID, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran = cmd
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	return &s.result, nil
}

func (s *stub) CheckExec(_ context.Context, c service.Caller, id wrenn.SandboxID) error {
	b, err := s.find(c, id)
	if err == nil && b.State == wrenn.Paused && !b.AutoResume {
		err = wrenn.NotWhilePaused(id)
	}
	return cmp.Or(err, s.checkErr)
}

func (s *stub) AwaitRunning(ctx context.Context, c service.Caller, id wrenn.SandboxID) error {
	if b, err := s.find(c, id); err != nil || !b.AutoResume {
		return cmp.Or(err, error(wrenn.NotWhilePaused(id)))
	}
	select {
	case <-s.runs:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *stub) StartExec(ctx context.Context, c service.Caller, id wrenn.SandboxID, start wrenn.ExecStart) (service.ExecStream, error) {
	if s.waking != nil {
		s.waking <- struct{}{}
		<-s.waking
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = start
	if start.Cmd == "missing" {
		return nil, wrenn.Errorf(wrenn.NotFound, "no program missing in the sandbox")
	}
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	return s.stream(), nil
}

func (s *stub) AttachExec(ctx context.Context, c service.Caller, id wrenn.SandboxID, to wrenn.ExecAttach) (service.ExecStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attached = to
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	return s.stream(), nil
}

func (s *stub) WriteFile(_ context.Context, c service.Caller, id wrenn.SandboxID, user, path string, content io.Reader) error {
	if _, err := s.find(c, id); err != nil {
		return err
	}
	text, err := io.ReadAll(content)
	if err != nil {
		return &wrenn.Error{Code: wrenn.Unavailable, Message: "the host hung up", Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]string{}
	}
	s.files[path], s.user = string(text), user
	return nil
}

func (s *stub) ReadFile(_ context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (io.ReadCloser, error) {
	if _, err := s.find(c, id); err != nil {
		return nil, err
	}
	return s.read(path)
}

func (s *stub) Record(e service.AuditEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.audited = append(s.audited, e)
}

func (s *stub) AuditLog(_ context.Context, c service.Caller, list service.ListAudit) ([]service.AuditEntry, string, error) {
	if _, err := s.find(c, testID); err != nil {
		return nil, "", err
	}
	if list.Page != "" {
		return nil, "", nil
	}
	return []service.AuditEntry{{
		At: testTime, Key: testKeyID, KeyName: "laptop", Address: "192.0.2.7", RequestID: "r", Operation: "deleteSandbox", Path: "/v1/sandboxes/" + string(testID), Status: 204,
	}}, "1", nil
}

func (s *stub) Usage(_ context.Context, c service.Caller, q service.UsageQuery) (*service.Usage, error) {
	if _, err := s.find(c, testID); err != nil {
		return nil, err
	}
	if q.Team == "missing" {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no team %q", q.Team)
	}
	one := postgres.Usage{Begins: testTime, Creates: 1, Sandboxes: 1500, Paused: 2000, VCPUs: 3000, MemoryMiB: 4000, DiskMiB: 5000, VolumeMiB: 6000, TemplateMiB: 7000}
	return &service.Usage{From: testTime, To: testTime, Step: cmp.Or(q.Step, "hour"), Counted: postgres.UsageProgress{From: testTime, Until: testTime}, Total: one, Steps: []postgres.Usage{one}}, nil
}

func (s *stub) Limits(_ context.Context, c service.Caller) ([]service.TeamLimit, error) {
	if _, err := s.find(c, testID); err != nil {
		return nil, err
	}
	return []service.TeamLimit{
		{Name: "sandboxes", Allowed: 100, Used: new(int64(3)), ChangedBy: service.ByTeam, Setting: "max_sandboxes"},
		{Name: "timeout", OfSandbox: true, Allowed: 60, Unit: "s", ChangedBy: service.Fixed},
	}, nil
}

func (s *stub) CreateKey(_ context.Context, c service.Caller, want service.NewKey) (service.Key, string, error) {
	if _, err := s.find(c, testID); err != nil {
		return service.Key{}, "", err
	}
	return service.Key{ID: testKeyID, Name: want.Name, Hint: "e2b_0123", Scopes: want.Scopes, ExpiresAt: want.ExpiresAt, CreatedAt: testTime}, testKey, nil
}

func (s *stub) ListKeys(_ context.Context, c service.Caller) ([]service.Key, error) {
	if _, err := s.find(c, testID); err != nil {
		return nil, err
	}
	return []service.Key{{ID: testKeyID, Name: "laptop", Hint: "e2b_0123", Scopes: wrenn.AllScopes, CreatedAt: testTime, LastUsedAt: testTime, ExpiresAt: testTime}}, nil
}

func (s *stub) RevokeKey(_ context.Context, c service.Caller, id string) error {
	if _, err := s.find(c, testID); err != nil {
		return err
	}
	if id != testKeyID {
		return wrenn.Errorf(wrenn.NotFound, "key not found")
	}
	return nil
}

// running is a Server that serves s until the test ends.
type running struct {
	*Server
	address string
	stop    func() error // ends Run and returns its error
}

// serve starts a server of s. tune changes it before it starts; it may be nil.
func serve(t *testing.T, s Service, tune func(*Server)) *running {
	t.Helper()
	registry := prometheus.NewRegistry()
	server, err := New(Config{Service: s, Log: slog.New(slog.DiscardHandler), Metrics: registry, ShutdownGrace: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if tune != nil {
		tune(server)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, l) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return &running{Server: server, address: l.Addr().String(), stop: stop}
}
