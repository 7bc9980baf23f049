package api

import (
	"context"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

const (
	testWebhook  = "wh_gggggggggggggggggggg"
	webhookJSON  = `"id":"wh_gggggggggggggggggggg","url":"https://example.com/hooks","description":"ci","events":["sandbox.running"],"enabled":true,"created_at":"2026-01-02T15:04:05Z","updated_at":"2026-01-02T15:04:05Z"`
	deliveryJSON = `{"id":"2b1c7a0e-6a51-4b7e-9d58-0a8c5e1f9b11","event":"sandbox.running","sandbox_id":"` + testID + `","state":"pending","attempts":2,"status":500,"error":"the receiver answered 500","created_at":"2026-01-02T15:04:05Z","attempted_at":"2026-01-02T15:04:05Z","next_at":"2026-01-02T15:04:05Z"}`
)

func (s *stub) findWebhook(c service.Caller, id wrenn.WebhookID) (*wrenn.Webhook, error) {
	if _, err := s.find(c, testID); err != nil {
		return nil, err
	}
	if id != testWebhook {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is none of that id")
	}
	return &wrenn.Webhook{ID: testWebhook, URL: "https://example.com/hooks", Description: "ci", Events: []string{"sandbox.running"}, Enabled: true, CreatedAt: testTime, UpdatedAt: testTime}, nil
}

func (s *stub) CreateWebhook(_ context.Context, c service.Caller, want service.NewWebhook) (*wrenn.Webhook, string, error) {
	if !strings.HasPrefix(want.URL, "https://") {
		return nil, "", wrenn.Errorf(wrenn.Invalid, "no URL")
	}
	made, err := s.findWebhook(c, testWebhook)
	return made, "whsec_x", err
}

func (s *stub) ListWebhooks(_ context.Context, c service.Caller) ([]wrenn.Webhook, error) {
	one, err := s.findWebhook(c, testWebhook)
	if err != nil {
		return nil, err
	}
	return []wrenn.Webhook{*one}, nil
}

func (s *stub) Webhook(_ context.Context, c service.Caller, id wrenn.WebhookID) (*wrenn.Webhook, error) {
	return s.findWebhook(c, id)
}

func (s *stub) UpdateWebhook(_ context.Context, c service.Caller, id wrenn.WebhookID, change service.ChangeWebhook) (*wrenn.Webhook, error) {
	out, err := s.findWebhook(c, id)
	if err == nil && change.Enabled != nil {
		out.Enabled, out.DisabledReason = *change.Enabled, "by a user"
	}
	return out, err
}

func (s *stub) DeleteWebhook(_ context.Context, c service.Caller, id wrenn.WebhookID) error {
	_, err := s.findWebhook(c, id)
	return err
}

func (s *stub) TestWebhook(_ context.Context, c service.Caller, id wrenn.WebhookID) (*wrenn.WebhookDelivery, error) {
	_, err := s.findWebhook(c, id)
	return &wrenn.WebhookDelivery{
		ID: "2b1c7a0e-6a51-4b7e-9d58-0a8c5e1f9b11", Event: "sandbox.running", Sandbox: testID, State: wrenn.DeliveryPending, Attempts: 2, Status: 500,
		Error: "the receiver answered 500", CreatedAt: testTime, AttemptedAt: testTime, NextAt: testTime,
	}, err
}

func (s *stub) WebhookDeliveries(ctx context.Context, c service.Caller, id wrenn.WebhookID, _ int) ([]wrenn.WebhookDelivery, error) {
	one, err := s.TestWebhook(ctx, c, id)
	return []wrenn.WebhookDelivery{*one}, err
}

func webhookFailures(method, rest, body string) []call {
	const path = "/v1/webhooks/" + testWebhook
	return []call{
		{name: "missing", method: method, path: "/v1/webhooks/wh_00000000000000000000" + rest, body: body, status: 404, code: "not_found"},
		{name: "no id", method: method, path: "/v1/webhooks/x" + rest, body: body, status: 404, code: "not_found"},
		{name: "no key", method: method, path: path + rest, body: body, key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path + rest, body: body, status: 503, code: "unavailable"},
	}
}

func webhookCalls() map[string][]call {
	const all, one = "/v1/webhooks", "/v1/webhooks/" + testWebhook
	const body = `{"url":"https://example.com/hooks","events":["sandbox.running"],"description":"ci"}`
	return map[string][]call{
		"createWebhook": append(jsonCalls(all),
			call{name: "ok", method: "POST", path: all, body: body, status: 201, want: `{` + webhookJSON + `,"secret":"whsec_x"}`},
			call{name: "no URL", method: "POST", path: all, body: `{}`, status: 400, code: "invalid_request"},
			call{name: "unknown event", method: "POST", path: all, body: `{"url":"https://example.com/","events":["x"]}`, status: 400, code: "invalid_request"},
			call{name: "no key file", service: &stub{fail: wrenn.Errorf(wrenn.FailedPrecondition, "no key")}, method: "POST", path: all, body: body, status: 409, code: "invalid_state"},
			call{name: "limit", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: "POST", path: all, body: body, status: 429, code: "limit_exceeded"},
			call{name: "no key", method: "POST", path: all, body: body, key: "-", status: 401, code: "unauthorized"},
		),
		"listWebhooks": {
			{name: "ok", method: "GET", path: all, status: 200, want: `[{` + webhookJSON + `}]`},
			{name: "no key", method: "GET", path: all, key: "-", status: 401, code: "unauthorized"},
		},
		"getWebhook": append(webhookFailures("GET", "", ""), call{name: "ok", method: "GET", path: one, status: 200, want: `{` + webhookJSON + `}`}),
		"updateWebhook": append(append(webhookFailures("PATCH", "", `{}`), jsonCallsBy("PATCH", one)...),
			call{name: "ok", method: "PATCH", path: one, body: `{"description":"ci"}`, status: 200, want: `{` + webhookJSON + `}`},
		),
		"deleteWebhook": append(webhookFailures("DELETE", "", ""), call{name: "ok", method: "DELETE", path: one, status: 204}),
		"testWebhook":   append(webhookFailures("POST", "/test", ""), call{name: "ok", method: "POST", path: one + "/test", status: 200, want: deliveryJSON}),
		"listWebhookDeliveries": append(webhookFailures("GET", "/deliveries", ""),
			call{name: "ok", method: "GET", path: one + "/deliveries?limit=200", status: 200, want: `[` + deliveryJSON + `]`},
			call{name: "too many", method: "GET", path: one + "/deliveries?limit=201", status: 400, code: "invalid_request"},
		),
	}
}
