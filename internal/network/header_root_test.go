//go:build root

package network

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/network/egress"
	"wrenn.dev/internal/testkit"
)

// TestHeadersOfASlot: requests of a guest to a host with a header rule get its headers,
// wherever the guest connects to; others, and closed networks, are as without.
func TestHeadersOfASlot(t *testing.T) {
	n := newNamesWorld(t)
	pool := n.open(t, func(c *Config) { c.Roots = n.roots })
	n.slot = acquire(t, pool, "a")
	n.guest = newGuest(t, n.slot)
	authority, err := egress.NewAuthority("a")
	testkit.Must(t, err)
	rules := wrenn.NetworkPolicy{Headers: []wrenn.HeaderRule{{
		Host: wrenn.NetworkName{Domain: "example.com"}, Headers: []wrenn.Header{{Name: "Authorization", Text: "Bearer ${secrets.token}"}},
	}}}
	n.slot.SetCredentials(egress.Credentials{Authority: authority, Secrets: map[string]string{"token": "abc"}})
	testkit.Must(t, n.slot.SetPolicy(t.Context(), rules))

	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM([]byte(authority.Certificate))
	inside := n.client(t, somewhere)
	inside.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: trusted}
	if _, body, err := n.get(t, inside, "https://example.com/authorization"); err != nil || body != "Bearer abc" {
		t.Errorf("got %q, %v", body, err)
	}
	plain := n.client(t, worldPublic)
	for _, url := range []string{"https://other.test/authorization", "https://example.com:8443/authorization", "http://example.com/authorization"} {
		if status, body, err := n.get(t, plain, url); err != nil || status != http.StatusOK || body != "" {
			t.Errorf("%s: %d %q, %v", url, status, body, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if conn, err := dial(ctx, n.guest.path, "tcp4", metadata+":443"); err == nil { // its packets are dropped
		conn.Close()
		t.Error("a header rule opens a closed network")
	}
	testkit.Must(t, n.slot.SetPolicy(t.Context(), wrenn.NetworkPolicy{}))
	if _, body, err := n.get(t, n.client(t, worldPublic), "https://example.com/authorization"); err != nil || body != "" {
		t.Errorf("without rules: %q, %v", body, err)
	}
}
