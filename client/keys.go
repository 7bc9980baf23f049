package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Key is an API key without its secret.
type Key struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Hint       string    `json:"hint"` // the first characters of the secret
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"` // zero when never
	Scopes     []string  `json:"scopes"`                // "read", "sandboxes", "templates", "admin"
	Role       string    `json:"role,omitempty"`        // "viewer", "developer" or "admin"; "" if the scopes are those of none
	ExpiresAt  time.Time `json:"expires_at,omitzero"`   // zero is never
}

// CreateKey says what key Client.CreateKey makes.
type CreateKey struct {
	Name      string    `json:"name"`
	Scopes    []string  `json:"scopes,omitempty"`    // what it may be used for; none, without Role: everything
	Role      string    `json:"role,omitempty"`      // instead of Scopes
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero is never
}

// CreateKey makes an API key of the team. Its secret is returned this once.
func (c *Client) CreateKey(ctx context.Context, want CreateKey) (key Key, secret string, err error) {
	var out struct {
		Key

		Secret string `json:"key"`
	}
	err = c.call(ctx, request{method: http.MethodPost, path: "/v1/keys", body: want}, &out)
	return out.Key, out.Secret, err
}

// Keys returns the team's keys that are not revoked, newest first.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var keys []Key
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/keys"}, &keys)
	return keys, err
}

// RevokeKey revokes the key with that id.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: "/v1/keys/" + url.PathEscape(id)}, nil)
}
