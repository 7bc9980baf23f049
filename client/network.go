package client

import (
	"context"
	"net/http"
	"net/url"
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
// are IPv4 addresses, such as 1.1.1.1, networks, such as 8.8.8.0/24, and names of hosts,
// such as example.com, *.example.com and example.com:443. Private and reserved networks
// are closed to every sandbox.
type NetworkPolicy struct {
	Default NetworkDefault `json:"default,omitempty"` // "" is AllowByDefault
	Allow   []string       `json:"allow,omitempty"`
	Deny    []string       `json:"deny,omitempty"`
	// DNSServers are asked for names in place of the host's: IPv4 addresses.
	DNSServers []string `json:"dns_servers,omitempty"`
	// Headers are set in requests outside of the sandbox, which does not see them.
	Headers []HeaderRule `json:"headers,omitempty"`
	// Proxy is what the allowed TCP connections go through; nil: none. Other traffic is denied then.
	Proxy *EgressProxy `json:"proxy,omitempty"`
	// Layers are the policies of the sandbox's team and template, which only Network returns:
	// each must allow a connection, too.
	Layers []NetworkLayer `json:"layers,omitempty"`
}

// EgressProxy is a server that connects in place of a sandbox's host.
type EgressProxy struct {
	Protocol string `json:"protocol"` // socks5, or http for CONNECT
	Address  string `json:"address"`  // HOST:PORT
	Username string `json:"username,omitempty"`
	// Password is for SetNetwork and creates: no answer has it.
	Password string `json:"password,omitempty"`
	// HasPassword is only in answers.
	HasPassword bool `json:"has_password,omitzero"`
	// TLS is how TLS is spoken to the proxy; nil: not at all.
	TLS *EgressProxyTLS `json:"tls,omitempty"`
}

// EgressProxyTLS says how an egress proxy proves who it is.
type EgressProxyTLS struct {
	ServerName string `json:"server_name,omitempty"` // "" is the host of its address
	CA         string `json:"ca,omitempty"`          // PEM; "" is the authorities of the host's machine
}

// NetworkLayer is the policy of a team or a template.
type NetworkLayer struct {
	Layer   string         `json:"layer"` // team or template
	Default NetworkDefault `json:"default"`
	Allow   []string       `json:"allow"`
	Deny    []string       `json:"deny"`
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

// TeamNetwork returns what the sandboxes of the team may reach, beside their own policies.
func (c *Client) TeamNetwork(ctx context.Context) (*NetworkPolicy, error) {
	return c.network(ctx, request{method: http.MethodGet, path: teamNetworkPath})
}

// SetTeamNetwork replaces the policy of the team, without DNSServers, Headers and Proxy. Sandboxes
// follow it within seconds. It needs a key with the scope admin.
func (c *Client) SetTeamNetwork(ctx context.Context, p NetworkPolicy) (*NetworkPolicy, error) {
	return c.network(ctx, request{method: http.MethodPut, path: teamNetworkPath, body: p})
}

// TemplateNetwork returns what the sandboxes of a template, in all its tags, may reach
// beside their own policies.
func (c *Client) TemplateNetwork(ctx context.Context, template string) (*NetworkPolicy, error) {
	return c.network(ctx, request{method: http.MethodGet, path: templateNetworkPath(template)})
}

// SetTemplateNetwork is SetTeamNetwork for the sandboxes of a template. It needs a key
// with the scope templates.
func (c *Client) SetTemplateNetwork(ctx context.Context, template string, p NetworkPolicy) (*NetworkPolicy, error) {
	return c.network(ctx, request{method: http.MethodPut, path: templateNetworkPath(template), body: p})
}

const teamNetworkPath = "/v1/team/network"

func templateNetworkPath(template string) string {
	return "/v1/templates/" + url.PathEscape(template) + "/network"
}

func (c *Client) network(ctx context.Context, r request) (*NetworkPolicy, error) {
	out := &NetworkPolicy{}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}
