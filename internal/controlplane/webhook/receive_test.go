package webhook_test

import (
	"io"
	"net/http"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"wrenn.dev/internal/controlplane/webhook"
	"wrenn.dev/internal/testkit"
)

// handle is what a receiver does with an event.
func handle(string, []byte) {}

// receive is the receiver of docs/webhooks.md.
func receive(hook *standardwebhooks.Webhook) http.HandlerFunc { // standardwebhooks.NewWebhook(os.Getenv("WEBHOOK_SECRET"))
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil || hook.Verify(body, r.Header) != nil {
			http.Error(w, "bad signature", http.StatusUnauthorized)
			return
		}
		handle(r.Header.Get("webhook-id"), body) // unless there was one with that id
	}
}

func TestReceive(t *testing.T) {
	t.Parallel()
	m := message("")
	hook, err := standardwebhooks.NewWebhook(m.Secret)
	testkit.Must(t, err)
	m.URL = serve(t, receive(hook))
	sender := webhook.New(local())
	if r := sender.Send(t.Context(), m); r.Status != http.StatusOK {
		t.Errorf("Send() = %+v", r)
	}
	m.Secret = webhook.NewSecret()
	if r := sender.Send(t.Context(), m); r.Status != http.StatusUnauthorized {
		t.Errorf("with another secret: %+v", r)
	}
}
