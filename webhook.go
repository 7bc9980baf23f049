package wrenn

import (
	"slices"
	"strings"
	"time"
)

// WebhookID names a webhook: "wh_" and 20 characters of [a-z0-9].
type WebhookID string

const (
	webhookIDPrefix = "wh_"
	// MaxWebhooks is how many a team has at most.
	MaxWebhooks = 20
	// MaxWebhookURL is how many bytes the URL of one has at most.
	MaxWebhookURL         = 2048
	maxWebhookDescription = 256

	// EventUpdated is the kind of an event that leaves a sandbox in its state, and EventTest
	// that of a test, which is of no sandbox.
	EventUpdated, EventTest = "sandbox.updated", "webhook.test"
)

// NewWebhookID returns a fresh random id (about 103 bits).
func NewWebhookID() WebhookID { return WebhookID(webhookIDPrefix + newID("")[:idLen-1]) }

// ParseWebhookID returns a text as an id, or an Invalid error.
func ParseWebhookID(text string) (WebhookID, error) {
	rest, ok := strings.CutPrefix(text, webhookIDPrefix)
	if !ok || len(rest) != idLen-1 || strings.Trim(rest, idAlphabet) != "" {
		return "", Errorf(Invalid, "%.64q is not the id of a webhook", text)
	}
	return WebhookID(text), nil
}

// WebhookEvents returns the kinds of events that a webhook can be for: "sandbox." and the
// state that a sandbox reached, and EventUpdated.
func WebhookEvents() []string {
	out := []string{EventUpdated}
	for _, state := range States() {
		if state != Pending { // of older versions
			out = append(out, "sandbox."+string(state))
		}
	}
	slices.Sort(out)
	return out
}

// CheckWebhook returns an Invalid error for events or a description that no webhook may have.
func CheckWebhook(events []string, description string) error {
	known := WebhookEvents()
	if len(events) > len(known) {
		return Errorf(Invalid, "a webhook has at most %d kinds of events", len(known))
	}
	for _, kind := range events {
		if !slices.Contains(known, kind) {
			return Errorf(Invalid, "there are no events %.64q: use %s", kind, strings.Join(known, ", "))
		}
	}
	if len(description) > maxWebhookDescription || !IsText(description) {
		return Errorf(Invalid, "the description of a webhook has at most %d bytes of UTF-8", maxWebhookDescription)
	}
	return nil
}

// Webhook is a URL to which events of a team's sandboxes are sent, without its secret.
type Webhook struct {
	ID             WebhookID
	URL            string
	Description    string
	Events         []string // the kinds that are sent; none are all
	Enabled        bool
	DisabledReason string
	FailingSince   time.Time // the first failure after the last success; zero: it works
	CreatedAt      time.Time
	UpdatedAt      time.Time
}

// DeliveryState is what became of an event for a webhook.
type DeliveryState string

// The states of a delivery.
const (
	DeliveryPending   DeliveryState = "pending" // it will be sent, or is being sent
	DeliveryDelivered DeliveryState = "delivered"
	DeliveryFailed    DeliveryState = "failed" // it is not sent again
)

// WebhookDelivery is an event on its way to a webhook.
type WebhookDelivery struct {
	ID          string // the same each time that it is sent
	Event       string
	Sandbox     SandboxID // "" for a test
	State       DeliveryState
	Attempts    int
	Status      int    // of the last answer; 0 is none
	Error       string // of the last attempt
	CreatedAt   time.Time
	AttemptedAt time.Time // zero: not yet
	NextAt      time.Time // zero unless it is pending
}
