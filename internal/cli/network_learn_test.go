package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/client"
)

// TestProposePolicy: a proposal has each host and address once, and nothing that is no rule.
func TestProposePolicy(t *testing.T) {
	got := proposePolicy([]client.NetworkEvent{
		{Protocol: "dns", Name: "asked.example.com", Port: 53},
		{Protocol: "tls", Name: "packages.example.com", Address: "192.0.2.1", Port: 443},
		{Protocol: "tls", Name: "packages.example.com", Address: "192.0.2.2", Port: 443},
		{Protocol: "http", Name: "mirror.example.com", Port: 80},
		{Protocol: "tls", Name: "a b.example.com; rm -rf", Port: 443}, {Protocol: "tls", Name: "*.com", Port: 443, Verdict: "denied"},
		{Protocol: "udp", Address: "1.1.1.1", Port: 53}, {Protocol: "udp", Address: "1.1.1.1", Port: 53},
		{Protocol: "tcp", Address: "10.0.0.1", Port: 80}, {Protocol: "tcp", Address: "169.254.169.254", Port: 80}, {Protocol: "tcp", Address: "x"},
	})
	want := client.NetworkPolicy{Default: client.DenyByDefault, Allow: []string{"mirror.example.com:80", "packages.example.com:443", "1.1.1.1"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
