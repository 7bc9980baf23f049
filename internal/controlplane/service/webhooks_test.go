package service_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/controlplane/webhook"
	"wrenn.dev/internal/testkit"
)

// received is an event that a receiver got.
type received struct {
	id        string
	Type      string
	Timestamp time.Time
	Data      struct {
		SandboxID     string `json:"sandbox_id"`
		Template      string
		State         string
		PreviousState string `json:"previous_state"`
		EndCause      string `json:"end_cause"`
		Metadata      map[string]string
		Version       int64
	}
}

// receiver is an HTTP server that keeps what it accepted.
type receiver struct {
	url    string
	secret string                     // checks signatures, if set
	refuse func(n int) (status int)   // of the n-th request, from 1; 0 accepts
	hold   func(context.Context, int) // may wait

	mu   sync.Mutex
	n    int
	got  []received
	bad  []error
	came chan struct{} // at each request
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{came: make(chan struct{}, 1000)}
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, err := range r.bad {
			t.Error(err)
		}
	})
	r.url = server.URL
	return r
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	r.mu.Lock()
	r.n++
	n, secret := r.n, r.secret
	r.mu.Unlock()
	r.came <- struct{}{}
	if r.hold != nil {
		r.hold(req.Context(), n)
	}
	if r.refuse != nil {
		if status := r.refuse(n); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	one := received{id: req.Header.Get("Webhook-Id")}
	if err == nil {
		err = json.Unmarshal(body, &one)
	}
	if err == nil && secret != "" {
		var verifier *standard.Webhook
		if verifier, err = standard.NewWebhook(secret); err == nil {
			err = verifier.Verify(body, req.Header)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.bad = append(r.bad, err)
		return
	}
	r.got = append(r.got, one)
}

func (r *receiver) events() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// wait waits until the receiver has accepted as many events.
func (r *receiver) wait(t *testing.T, n int) []received {
	t.Helper()
	testkit.WaitUntil(t, "events arrive", func() bool { return len(r.events()) >= n })
	return r.events()
}

// withWebhooks is a configuration whose webhooks reach this machine.
func withWebhooks(keyFile string, change func(*service.WebhookConfig)) func(*service.Config) {
	return func(cfg *service.Config) {
		keys, err := vault.Load([]string{keyFile})
		if err != nil {
			panic(err)
		}
		cfg.Vault = keys
		cfg.Webhooks = service.WebhookConfig{
			Config: webhook.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, PlainHTTP: true, Timeout: testkit.Timeout},
			Every:  10 * time.Millisecond, Backoff: []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond},
		}
		if change != nil {
			change(&cfg.Webhooks)
		}
	}
}

// add makes a webhook for a receiver, which then checks signatures.
func (r *receiver) add(t *testing.T, s *service.Service, c service.Caller, events ...string) *wrenn.Webhook {
	t.Helper()
	made, secret, err := s.CreateWebhook(t.Context(), c, service.NewWebhook{URL: r.url + "/hook", Events: events})
	testkit.Must(t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secret = secret
	return made
}

// TestWebhooks: the team's events of the chosen kinds arrive, signed, and each is listed.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, withWebhooks(keyFile(t), nil))
	all, some, others := newReceiver(t), newReceiver(t), newReceiver(t)
	hook := all.add(t, s, w.caller)
	some.add(t, s, w.caller, "sandbox.running", "sandbox.stopped")
	others.add(t, s, w.team(t, "another"))
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{Metadata: map[string]string{"for": "ci"}})
	testkit.Must(t, err)
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, sb.ID))
	var kinds []string
	for _, e := range all.wait(t, 4) {
		kinds = append(kinds, e.Type)
		if e.Data.SandboxID != string(sb.ID) || e.Data.Template != "base" || e.Data.Metadata["for"] != "ci" || e.Timestamp.IsZero() || "sandbox."+e.Data.State != e.Type {
			t.Errorf("got %+v", e)
		}
	}
	slices.Sort(kinds)
	if diff := cmp.Diff([]string{"sandbox.running", "sandbox.starting", "sandbox.stopped", "sandbox.stopping"}, kinds); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
	for _, e := range some.wait(t, 2) {
		if e.Type == "sandbox.stopped" && (e.Data.PreviousState != "stopping" || e.Data.EndCause != "user") {
			t.Errorf("got %+v", e)
		}
	}
	var list []wrenn.WebhookDelivery
	testkit.WaitUntil(t, "all are delivered", func() bool {
		list, err = s.WebhookDeliveries(t.Context(), w.caller, hook.ID, 0)
		return err == nil && len(list) == 4 && !slices.ContainsFunc(list, func(d wrenn.WebhookDelivery) bool { return d.State != wrenn.DeliveryDelivered })
	})
	if d := list[0]; d.Status != 200 || d.Attempts != 1 || d.Sandbox != sb.ID || d.Error != "" {
		t.Errorf("listed %+v", d)
	}
	if n := len(others.events()); n != 0 {
		t.Errorf("another team got %d events", n)
	}
}

// TestWebhookSecrets: the secret is in no row and opens at no other webhook, and a new key
// encrypts it.
func TestWebhookSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	before, after := keyFile(t), keyFile(t)
	s, stop := w.replica(t, withWebhooks(before, nil))
	r := newReceiver(t)
	hook := r.add(t, s, w.caller)
	if text := w.dump(t, "SELECT string_agg(w::text, '') FROM webhooks w"); strings.Contains(text, r.secret) || !strings.HasPrefix(r.secret, "whsec_") {
		t.Error("the secret is in the table")
	}
	stop()
	s, _ = w.replica(t, func(cfg *service.Config) {
		withWebhooks(before, nil)(cfg)
		keys, err := vault.Load([]string{after, before})
		testkit.Must(t, err)
		cfg.Vault = keys
	})
	testkit.WaitUntil(t, "the new key encrypts it", func() bool {
		return w.dump(t, "SELECT count(*)::text FROM webhooks WHERE key_id = '"+mustKeyID(t, after)+"'") == "1"
	})
	if d, err := s.TestWebhook(t.Context(), w.caller, hook.ID); err != nil || d.State != wrenn.DeliveryDelivered {
		t.Errorf("TestWebhook() = %+v, %v", d, err)
	}
	none, err := service.New(service.Config{}, w.store, nil)
	testkit.Must(t, err)
	if _, _, err := none.CreateWebhook(t.Context(), w.caller, service.NewWebhook{URL: "https://example.com/"}); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("without a key: %v", err)
	}
}

func mustKeyID(t *testing.T, file string) string {
	t.Helper()
	keys, err := vault.Load([]string{file})
	testkit.Must(t, err)
	return keys.KeyID()
}

// TestWebhookRetries: what was refused is sent again, with the same id; other webhooks do
// not wait for one that does not answer.
func TestWebhookRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, withWebhooks(keyFile(t), nil))
	slow := newReceiver(t)
	released := make(chan struct{})
	defer close(released)
	slow.hold = func(ctx context.Context, _ int) {
		select {
		case <-released:
		case <-ctx.Done():
		}
	}
	slow.add(t, s, w.caller)
	flaky := newReceiver(t)
	flaky.refuse = func(n int) int {
		if n <= 2 {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	hook := flaky.add(t, s, w.caller, "sandbox.running")
	create(t, s, w.caller)
	<-slow.came
	got := flaky.wait(t, 1)
	var list []wrenn.WebhookDelivery
	testkit.WaitUntil(t, "it is delivered", func() bool {
		list, _ = s.WebhookDeliveries(t.Context(), w.caller, hook.ID, 0)
		return len(list) == 1 && list[0].State == wrenn.DeliveryDelivered
	})
	if list[0].Attempts != 3 || list[0].ID != got[0].id || list[0].Status != 200 {
		t.Errorf("delivered %+v, received %+v", list[0], got[0])
	}
	if now, err := s.Webhook(t.Context(), w.caller, hook.ID); err != nil || !now.FailingSince.IsZero() {
		t.Errorf("after a success: %+v, %v", now, err)
	}
}

// TestWebhookIsDisabled: a webhook whose deliveries all fail for long is disabled, with the
// reason, what waits is given up, and it can be enabled again.
func TestWebhookIsDisabled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, withWebhooks(keyFile(t), func(cfg *service.WebhookConfig) { cfg.DisableAfter = time.Nanosecond }))
	broken, gone := newReceiver(t), newReceiver(t)
	broken.refuse = func(int) int { return http.StatusInternalServerError }
	gone.refuse = func(int) int { return http.StatusGone }
	hooks := []*wrenn.Webhook{broken.add(t, s, w.caller, "sandbox.running"), gone.add(t, s, w.caller, "sandbox.running")}
	create(t, s, w.caller)
	for i, want := range []string{"the receiver answered 500", "410"} {
		var now *wrenn.Webhook
		testkit.WaitUntil(t, "the webhook is disabled", func() bool {
			var err error
			now, err = s.Webhook(t.Context(), w.caller, hooks[i].ID)
			return err == nil && !now.Enabled
		})
		if !strings.Contains(now.DisabledReason, want) {
			t.Errorf("disabled: %q, want %q in it", now.DisabledReason, want)
		}
		list, err := s.WebhookDeliveries(t.Context(), w.caller, hooks[i].ID, 0)
		if err != nil || len(list) != 1 || list[0].State != wrenn.DeliveryFailed || list[0].Error == "" || !list[0].NextAt.IsZero() {
			t.Errorf("listed %+v, %v", list, err)
		}
	}
	enabled, err := s.UpdateWebhook(t.Context(), w.caller, hooks[0].ID, service.ChangeWebhook{Enabled: new(true)})
	if err != nil || !enabled.Enabled || enabled.DisabledReason != "" || !enabled.FailingSince.IsZero() {
		t.Errorf("UpdateWebhook() = %+v, %v", enabled, err)
	}
}

// TestReplicaDiesWhileDelivering: another replica sends again what the receiver did not answer.
func TestReplicaDiesWhileDelivering(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	key := keyFile(t)
	lease := func(cfg *service.WebhookConfig) { cfg.Lease = time.Second }
	first, stop := w.replica(t, withWebhooks(key, lease))
	r := newReceiver(t)
	r.hold = func(ctx context.Context, n int) {
		if n == 1 {
			<-ctx.Done()
		}
	}
	r.refuse = func(n int) int {
		if n == 1 {
			return http.StatusInternalServerError // the replica that asked is gone
		}
		return 0
	}
	hook := r.add(t, first, w.caller, "sandbox.running")
	create(t, first, w.caller)
	<-r.came
	stop()
	second, _ := w.replica(t, withWebhooks(key, lease))
	got := r.wait(t, 1)
	testkit.WaitUntil(t, "it is delivered", func() bool {
		list, err := second.WebhookDeliveries(t.Context(), w.caller, hook.ID, 0)
		return err == nil && len(list) == 1 && list[0].ID == got[0].id && list[0].State == wrenn.DeliveryDelivered && list[0].Attempts >= 2
	})
}

// TestOneTestAtATime: a test that takes long keeps others of the same webhook off.
func TestOneTestAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, withWebhooks(keyFile(t), nil))
	r := newReceiver(t)
	release := make(chan struct{})
	r.hold = func(context.Context, int) { <-release }
	hook := r.add(t, s, w.caller)
	first := make(chan error, 1)
	go func() {
		_, err := s.TestWebhook(t.Context(), w.caller, hook.ID)
		first <- err
	}()
	<-r.came
	if _, err := s.TestWebhook(t.Context(), w.caller, hook.ID); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("a second test: %v", err)
	}
	close(release)
	testkit.Must(t, <-first)
	testkit.Must(t, errorOf(s.TestWebhook(t.Context(), w.caller, hook.ID)))
}

// TestWebhookUseCases: limits, errors, and that teams do not see each other's.
func TestWebhookUseCases(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, withWebhooks(keyFile(t), nil))
	r := newReceiver(t)
	hook := r.add(t, s, w.caller)
	other := w.team(t, "another")
	for name, err := range map[string]error{
		"get":    errorOf(s.Webhook(t.Context(), other, hook.ID)),
		"update": errorOf(s.UpdateWebhook(t.Context(), other, hook.ID, service.ChangeWebhook{})),
		"test":   errorOf(s.TestWebhook(t.Context(), other, hook.ID)),
		"list":   errorOf(s.WebhookDeliveries(t.Context(), other, hook.ID, 0)),
		"delete": s.DeleteWebhook(t.Context(), other, hook.ID),
	} {
		if wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("%s of another team's: %v", name, err)
		}
	}
	if _, _, err := s.CreateWebhook(t.Context(), w.caller, service.NewWebhook{URL: r.url, Events: []string{"sandbox.none"}}); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("unknown events: %v", err)
	}
	disabled, err := s.UpdateWebhook(t.Context(), w.caller, hook.ID, service.ChangeWebhook{Enabled: new(false), Events: &[]string{"sandbox.failed"}, Description: new("ci")})
	if err != nil || disabled.Enabled || disabled.DisabledReason != "by a user" || disabled.Description != "ci" || len(disabled.Events) != 1 || disabled.URL != hook.URL {
		t.Errorf("UpdateWebhook() = %+v, %v", disabled, err)
	}
	for range wrenn.MaxWebhooks - 1 {
		newReceiverless(t, s, w.caller)
	}
	if _, _, err := s.CreateWebhook(t.Context(), w.caller, service.NewWebhook{URL: r.url}); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("over the limit: %v", err)
	}
	testkit.Must(t, s.DeleteWebhook(t.Context(), w.caller, hook.ID))
	if all, err := s.ListWebhooks(t.Context(), w.caller); err != nil || len(all) != wrenn.MaxWebhooks-1 {
		t.Errorf("listed %d, %v", len(all), err)
	}
}

func errorOf[T any](_ T, err error) error { return err }

func newReceiverless(t *testing.T, s *service.Service, c service.Caller) {
	t.Helper()
	_, _, err := s.CreateWebhook(t.Context(), c, service.NewWebhook{URL: "https://example.com/"})
	testkit.Must(t, err)
}
