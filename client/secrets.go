package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Secret is a secret of the team, without its value, which the server never returns.
type Secret struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Version   int               `json:"version"` // of the value, from 1
	Metadata  map[string]string `json:"metadata"`
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
}

// SetSecret stores a secret of at most 32 KiB of UTF-8 text, or gives one that exists another
// value. With a nil metadata that stays as it is.
func (c *Client) SetSecret(ctx context.Context, name, value string, metadata map[string]string) (*Secret, error) {
	body := struct {
		Value    string            `json:"value"`
		Metadata map[string]string `json:"metadata,omitempty"`
	}{value, metadata}
	out := &Secret{}
	if err := c.call(ctx, request{method: http.MethodPut, path: secretPath(name), body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Secrets returns the team's secrets in the order of their names.
func (c *Client) Secrets(ctx context.Context) ([]Secret, error) {
	var out []Secret
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/secrets"}, &out)
	return out, err
}

// Secret returns a secret, by its name or id.
func (c *Client) Secret(ctx context.Context, name string) (*Secret, error) {
	out := &Secret{}
	if err := c.call(ctx, request{method: http.MethodGet, path: secretPath(name)}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteSecret deletes a secret with its value, by its name or id.
func (c *Client) DeleteSecret(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: secretPath(name)}, nil)
}

func secretPath(name string) string { return "/v1/secrets/" + url.PathEscape(name) }
