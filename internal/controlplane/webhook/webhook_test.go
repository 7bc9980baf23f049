package webhook_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/webhook"
	"wrenn.dev/internal/testkit"
)

// local is a configuration that reaches receivers on this machine.
func local() webhook.Config {
	return webhook.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, PlainHTTP: true, Timeout: testkit.Timeout}
}

func serve(t *testing.T, handle http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return server.URL
}

func message(url string) webhook.Message {
	return webhook.Message{ID: "2b1c7a0e-0000-4000-8000-000000000001", URL: url, Secret: webhook.NewSecret(), Body: []byte(`{"type":"webhook.test"}`)}
}

// TestSignature: the library of the specification accepts what is sent, and nothing else.
func TestSignature(t *testing.T) {
	t.Parallel()
	type request struct {
		header http.Header
		body   []byte
	}
	got := make(chan request, 1)
	m := message(serve(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // the signature shows what is missing
		got <- request{r.Header, body}
	}))
	if r := webhook.New(local()).Send(t.Context(), m); r != (webhook.Result{Status: 200}) {
		t.Fatalf("Send() = %+v", r)
	}
	r := <-got
	verifier, err := standard.NewWebhook(m.Secret)
	testkit.Must(t, err)
	testkit.Must(t, verifier.Verify(r.body, r.header))
	if err := verifier.Verify(append(r.body, ' '), r.header); err == nil {
		t.Error("another body is accepted")
	}
	if r.header.Get("Webhook-Id") != m.ID || r.header.Get("Content-Type") != "application/json" || string(r.body) != string(m.Body) {
		t.Errorf("sent %v, %s", r.header, r.body)
	}
}

// TestHostileReceivers: no answer makes the sender follow, read for long, or wait for long.
func TestHostileReceivers(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 1)
	other := serve(t, func(http.ResponseWriter, *http.Request) { reached <- struct{}{} })
	impatient := local()
	impatient.Timeout = 200 * time.Millisecond
	for name, tc := range map[string]struct {
		cfg    webhook.Config
		handle http.HandlerFunc
		status int
		want   string
	}{
		"redirect": {local(), func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other, http.StatusTemporaryRedirect) }, 307, "redirects"},
		"refusal":  {local(), func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "private words", http.StatusTeapot) }, 418, "the receiver answered 418"},
		"slow": {impatient, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // only then the server sees that the client is gone
			<-r.Context().Done()
		}, 0, "no answer within 200ms"},
		"huge header": {local(), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		}, 0, "too long"},
		"endless": {local(), func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := webhook.New(tc.cfg).Send(t.Context(), message(serve(t, tc.handle)))
			if r.Status != tc.status || !strings.Contains(r.Error, tc.want) || (r.Error == "") != (tc.want == "") || strings.Contains(r.Error, "private") {
				t.Errorf("Send() = %+v", r)
			}
		})
	}
	t.Cleanup(func() {
		select {
		case <-reached:
			t.Error("a redirect was followed")
		default:
		}
	})
}

// TestClosedAddresses: what is not public is refused when it is dialed, also by a name.
func TestClosedAddresses(t *testing.T) {
	t.Parallel()
	reached := false
	url := serve(t, func(http.ResponseWriter, *http.Request) { reached = true })
	sender := webhook.New(webhook.Config{PlainHTTP: true, Deny: []netip.Prefix{netip.MustParsePrefix("198.41.0.0/24")}})
	byName := strings.Replace(url, "127.0.0.1", "localhost", 1)
	for _, to := range []string{url, byName, "http://169.254.169.254/latest", "http://[::1]:1/", "http://[::ffff:10.0.0.1]/", "http://198.41.0.4/"} {
		if r := sender.Send(t.Context(), message(to)); r.Status != 0 || !strings.Contains(r.Error, "not public") {
			t.Errorf("%s: %+v", to, r)
		}
		if err := sender.CheckURL(to); to != byName && wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("CheckURL(%s) = %v", to, err)
		}
	}
	if reached {
		t.Error("a closed address was reached")
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	sender := webhook.New(webhook.Config{})
	testkit.Must(t, sender.CheckURL("https://example.com:8443/hooks?token=x"))
	for _, url := range []string{
		"", "example.com", "http://example.com/", "ftp://example.com/", "https:///x", "https://user:secret@example.com/", "https://example.com/#x", "https:example.com",
		"https://10.0.0.1/", "https://example.com/" + strings.Repeat("x", wrenn.MaxWebhookURL), "https://example.com/\xff", "https://exa mple.com/",
	} {
		if err := sender.CheckURL(url); wrenn.CodeOf(err) != wrenn.Invalid || strings.Contains(err.Error(), "secret@") {
			t.Errorf("CheckURL(%q) = %v", url, err)
		}
	}
}
