package api

import (
	"context"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

const secretJSON = `{"id":"sec_gggggggggggggggggggg","name":"token","version":1,"metadata":{"for":"ci"},"created_at":"2026-01-02T15:04:05Z","updated_at":"2026-01-02T15:04:05Z"}`

func testSecret(name string) *wrenn.Secret {
	return &wrenn.Secret{
		ID: "sec_gggggggggggggggggggg", Name: name, Version: 1, Metadata: map[string]string{"for": "ci"}, CreatedAt: testTime, UpdatedAt: testTime,
	}
}

func (s *stub) findSecret(c service.Caller, name string) error {
	if _, err := s.find(c, testID); err != nil {
		return err
	}
	if name != "token" {
		return wrenn.Errorf(wrenn.NotFound, "there is none of that name")
	}
	return nil
}

func (s *stub) SetSecret(_ context.Context, c service.Caller, req service.NewSecret) (*wrenn.Secret, bool, error) {
	_, err := s.find(c, testID)
	return testSecret(req.Name), true, err
}

func (s *stub) ListSecrets(_ context.Context, c service.Caller, _ string, _ int) ([]wrenn.Secret, error) {
	return []wrenn.Secret{*testSecret("token")}, s.findSecret(c, "token")
}

func (s *stub) Secret(_ context.Context, c service.Caller, name string) (*wrenn.Secret, error) {
	return testSecret(name), s.findSecret(c, name)
}

func (s *stub) DeleteSecret(_ context.Context, c service.Caller, name string) error {
	return s.findSecret(c, name)
}

func secretFailures(method string) []call {
	const path = "/v1/secrets/token"
	return []call{
		{name: "missing", method: method, path: "/v1/secrets/other", status: 404, code: "not_found"},
		{name: "traversal", method: method, path: "/v1/secrets/..%2Fx", status: 404, code: "not_found"},
		{name: "no key", method: method, path: path, key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path, status: 503, code: "unavailable"},
	}
}

func secretCalls() map[string][]call {
	const all, one = "/v1/secrets", "/v1/secrets/token"
	const body = `{"value":"x","metadata":{"for":"ci"}}`
	return map[string][]call{
		"setSecret": append(jsonCallsBy("PUT", one),
			call{name: "ok", method: "PUT", path: one, body: body, status: 200, want: secretJSON},
			call{name: "no value", method: "PUT", path: one, body: `{}`, status: 400, code: "invalid_request"},
			call{name: "empty value", method: "PUT", path: one, body: `{"value":""}`, status: 400, code: "invalid_request"},
			call{name: "long value", method: "PUT", path: one, body: `{"value":"` + strings.Repeat("x", 40_000) + `"}`, status: 400, code: "invalid_request"},
			call{name: "no key file", service: &stub{fail: wrenn.Errorf(wrenn.FailedPrecondition, "no key")}, method: "PUT", path: one, body: body, status: 409, code: "invalid_state"},
			call{name: "limit", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: "PUT", path: one, body: body, status: 429, code: "limit_exceeded"},
			call{name: "no key", method: "PUT", path: one, body: body, key: "-", status: 401, code: "unauthorized"},
		),
		"listSecrets": {
			{name: "ok", method: "GET", path: all, status: 200, want: `[` + secretJSON + `]`},
			{name: "no key", method: "GET", path: all, key: "-", status: 401, code: "unauthorized"},
		},
		"getSecret":    append(secretFailures("GET"), call{name: "ok", method: "GET", path: one, status: 200, want: secretJSON}),
		"deleteSecret": append(secretFailures("DELETE"), call{name: "ok", method: "DELETE", path: one, status: 204}),
	}
}
