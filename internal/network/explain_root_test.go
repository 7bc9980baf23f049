//go:build root

package network

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func TestExplain(t *testing.T) {
	n := newNamesWorld(t)
	p := n.open(t, nil)
	for _, tc := range []struct {
		host    string
		port    uint16
		policy  wrenn.NetworkPolicy
		allowed bool
		rule    string
		addrs   []string // and their rules
	}{
		{"8.8.8.8", 0, policy(t, false, nil, nil), true, "default allow", []string{"8.8.8.8 default allow"}},
		{"8.8.8.8", 0, policy(t, false, nil, []string{"8.0.0.0/8"}), false, "deny 8.0.0.0/8", []string{"8.8.8.8 deny 8.0.0.0/8"}},
		{"8.8.8.8", 0, policy(t, true, []string{"8.8.8.8"}, []string{"8.0.0.0/8"}), true, "allow 8.8.8.8", []string{"8.8.8.8 allow 8.8.8.8"}},
		{metadata, 80, policy(t, true, []string{"0.0.0.0/0"}, nil), false, "closed 169.254.0.0/16", []string{metadata + " closed 169.254.0.0/16"}},
		{"example.com", 443, policy(t, true, []string{"example.com:443"}, nil), true, "allow example.com:443", []string{worldPublic + " allow example.com:443"}},
		{"example.com", 80, policy(t, true, []string{"example.com:443"}, nil), false, "default deny", nil},
		{"example.com", 80, policy(t, true, []string{"example.com:443", worldPublic}, nil), true, "allow " + worldPublic, []string{worldPublic + " allow " + worldPublic}},
		{"www.example.org", 0, policy(t, true, []string{"*.example.org"}, []string{"9.0.0.0/8"}), false, "deny 9.0.0.0/8", []string{worldOther + " deny 9.0.0.0/8"}},
		{"mixed.example.org", 0, policy(t, true, []string{"*.example.org"}, nil), true, "allow *.example.org", []string{worldOther + " allow *.example.org"}},
		{"inside.example.org", 0, policy(t, true, []string{"*.example.org"}, nil), false, "allow *.example.org", nil},
		{"example.com", 0, policy(t, false, nil, []string{worldPublic}), false, "deny " + worldPublic, []string{worldPublic + " deny " + worldPublic}},
		{"none.test", 0, policy(t, false, nil, nil), false, "", nil},
	} {
		e, err := p.Explain(t.Context(), tc.policy, tc.host, tc.port)
		testkit.Must(t, err)
		var addrs []string
		for _, a := range e.Addresses {
			addrs = append(addrs, a.Address.String()+" "+a.Rule)
		}
		if e.Allowed != tc.allowed || e.Rule != tc.rule || !cmp.Equal(addrs, tc.addrs) || e.Reason == "" {
			t.Errorf("%s:%d by %+v: %+v", tc.host, tc.port, tc.policy, e)
		}
	}
	layers := policy(t, false, nil, []string{"other.test"}).With(policy(t, true, []string{"8.0.0.0/8", "*.test"}, nil), policy(t, false, nil, []string{"8.8.4.4"}))
	for host, want := range map[string]string{
		"8.8.8.8": "true team allow 8.0.0.0/8", "8.8.4.4": "false template deny 8.8.4.4", "9.9.9.9": "false team default deny",
		"other.test": "false sandbox deny other.test", metadata: "false host closed 169.254.0.0/16",
	} {
		e, err := p.Explain(t.Context(), layers, host, 443)
		testkit.Must(t, err)
		if got := fmt.Sprint(e.Allowed, " ", e.Layer, " ", e.Rule); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	withHeaders := policy(t, true, []string{"example.com"}, nil)
	withHeaders.Headers = []wrenn.HeaderRule{{Host: wrenn.NetworkName{Domain: "*.com"}, Headers: []wrenn.Header{{Name: "a"}}}}
	for port, want := range map[uint16]bool{0: true, 443: true, 80: false} {
		e, err := p.Explain(t.Context(), withHeaders, "example.com", port)
		testkit.Must(t, err)
		if strings.Contains(e.Reason, "headers of the rule for *.com") != want {
			t.Errorf("port %d: %s", port, e.Reason)
		}
	}
	if _, err := p.Explain(t.Context(), wrenn.NetworkPolicy{}, "*.example.com", 0); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("Explain() = %v", err)
	}
}
