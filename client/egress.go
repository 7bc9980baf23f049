package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// NetworkEvent is something that a sandbox reached or was denied.
type NetworkEvent struct {
	Seq           int64     `json:"seq"` // grows with each event of the sandbox
	Time          time.Time `json:"time"`
	Protocol      string    `json:"protocol"`                 // tls, http, dns, tcp, udp, icmp, or ip- and a number
	Verdict       string    `json:"verdict"`                  // allowed, denied, failed or ended
	Name          string    `json:"name,omitempty"`           // that the sandbox gave
	Address       string    `json:"address,omitempty"`        // that it was connected to, or wanted to connect to
	Port          int       `json:"port,omitempty"`           // 0 for none
	Reason        string    `json:"reason,omitempty"`         // why it was denied or failed
	Via           string    `json:"via,omitempty"`            // the egress proxy that it goes through, as a URL
	SentBytes     int64     `json:"sent_bytes,omitempty"`     // of a connection that ended
	ReceivedBytes int64     `json:"received_bytes,omitempty"` // of a connection that ended
	DurationMs    int64     `json:"duration_ms,omitempty"`    // of a connection that ended
}

// NetworkLog is a part of a sandbox's egress log, oldest first.
type NetworkLog struct {
	Events  []NetworkEvent `json:"events"`
	Dropped int64          `json:"dropped"` // events after the known one that are not kept any more
}

// NetworkLogOptions are optional settings of NetworkLog.
type NetworkLogOptions struct {
	After int64         // the Seq of the last known event; 0 is none
	Wait  time.Duration // for an event if there is none: whole seconds, at most 25
}

// NetworkLog returns what a sandbox reached and was denied: the last 300 to 400
// events. To follow the log, call again with the last Seq and a Wait.
func (c *Client) NetworkLog(ctx context.Context, id string, opts NetworkLogOptions) (*NetworkLog, error) {
	query := url.Values{"after": {strconv.FormatInt(opts.After, 10)}, "wait_sec": {strconv.Itoa(int(opts.Wait / time.Second))}}
	out := &NetworkLog{}
	return out, c.call(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/network/log"), query: query}, out)
}

// NetworkExplanation says why a sandbox may or may not reach a host.
type NetworkExplanation struct {
	Allowed   bool             `json:"allowed"`
	Rule      string           `json:"rule,omitempty"`  // that decided
	Layer     string           `json:"layer,omitempty"` // whose rule that is: team, template, sandbox or host
	Reason    string           `json:"reason"`
	Addresses []NetworkAddress `json:"addresses"`
}

// NetworkAddress is an address of a NetworkExplanation.
type NetworkAddress struct {
	Address string `json:"address"`
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule"`
	Layer   string `json:"layer,omitempty"`
}

// ExplainNetwork reports whether a sandbox may reach a host, an IPv4 address or a name,
// at a port, and why; port 0 is any.
func (c *Client) ExplainNetwork(ctx context.Context, id, host string, port int) (*NetworkExplanation, error) {
	query := url.Values{"host": {host}}
	if port != 0 {
		query.Set("port", strconv.Itoa(port))
	}
	out := &NetworkExplanation{}
	return out, c.call(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/network/explain"), query: query}, out)
}
