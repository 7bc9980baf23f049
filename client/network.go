package client

import (
	"context"
	"net/http"
)

// NetworkDefault is what a NetworkPolicy does with addresses in neither of its lists.
type NetworkDefault string

// The values of NetworkDefault.
const (
	AllowByDefault NetworkDefault = "allow"
	DenyByDefault  NetworkDefault = "deny"
)

// NetworkPolicy is what a sandbox may reach of the public internet: what is in
// Allow, also if it is in Deny; not what is in Deny; the rest by Default. Rules
// are IPv4 addresses, such as 1.1.1.1, and networks, such as 8.8.8.0/24. Private
// and reserved networks are closed to every sandbox.
type NetworkPolicy struct {
	Default NetworkDefault `json:"default,omitempty"` // "" is AllowByDefault
	Allow   []string       `json:"allow,omitempty"`
	Deny    []string       `json:"deny,omitempty"`
	// Headers are set in requests outside of the sandbox, which does not see them.
	Headers []HeaderRule `json:"headers,omitempty"`
}

// HeaderRule has headers of a sandbox's requests by TLS to a host.
type HeaderRule struct {
	Host string `json:"host"` // example.com, *.example.com or example.com:8443; the port is 443 otherwise
	// Headers are texts by name. ${secrets.NAME} in a text stands for the team's secret of
	// that name.
	Headers map[string]string `json:"headers"`
}

// Network returns the policy that a sandbox follows.
func (c *Client) Network(ctx context.Context, id string) (*NetworkPolicy, error) {
	return c.network(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/network")})
}

// SetNetwork replaces the policy of a running or paused sandbox, at once, and
// returns it as the server has it. Connections that stay allowed continue.
func (c *Client) SetNetwork(ctx context.Context, id string, p NetworkPolicy) (*NetworkPolicy, error) {
	return c.network(ctx, request{method: http.MethodPut, path: sandboxPath(id, "/network"), body: p})
}

func (c *Client) network(ctx context.Context, r request) (*NetworkPolicy, error) {
	out := &NetworkPolicy{}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}
