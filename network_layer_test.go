package wrenn_test

import (
	"net/netip"
	"testing"

	"wrenn.dev"
)

func parsed(t *testing.T, denyByDefault bool, allow, deny []string) wrenn.NetworkPolicy {
	t.Helper()
	p, err := wrenn.ParseNetworkPolicy(denyByDefault, allow, deny)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDeniedNames: of the rules about a name the closest one decides, and an allowed
// address stays allowed.
func TestDeniedNames(t *testing.T) {
	open := parsed(t, false, []string{"good.evil.test", "1.1.1.1"}, []string{"*.evil.test", "evil.test:443", "9.9.9.9"})
	shut := parsed(t, true, []string{"*.example.com", "example.org"}, []string{"*.bad.example.com", "www.example.com", "example.org:22"})
	for _, tc := range []struct {
		policy wrenn.NetworkPolicy
		name   string
		addr   string
		port   uint16
		rule   string
	}{
		{open, "www.evil.test", "8.8.8.8", 80, "deny *.evil.test"},
		{open, "good.evil.test", "8.8.8.8", 80, "allow good.evil.test"},
		{open, "good.evil.test", "9.9.9.9", 80, "deny 9.9.9.9"},
		{open, "www.evil.test", "1.1.1.1", 80, "allow 1.1.1.1"},
		{open, "evil.test", "8.8.8.8", 443, "deny evil.test:443"},
		{open, "evil.test", "8.8.8.8", 80, "default allow"},
		{open, "evil.test", "8.8.8.8", 0, "default allow"}, // some port
		{open, "", "8.8.8.8", 443, "default allow"},
		{shut, "a.example.com", "8.8.8.8", 443, "allow *.example.com"},
		{shut, "a.bad.example.com", "8.8.8.8", 443, "deny *.bad.example.com"},
		{shut, "bad.example.com", "8.8.8.8", 443, "allow *.example.com"},
		{shut, "www.example.com", "8.8.8.8", 443, "deny www.example.com"},
		{shut, "example.org", "8.8.8.8", 22, "deny example.org:22"},
		{shut, "example.org", "8.8.8.8", 443, "allow example.org"},
		{shut, "other.test", "8.8.8.8", 443, "default deny"},
	} {
		d := tc.policy.Decide(tc.name, netip.MustParseAddr(tc.addr), tc.port)
		if d.Rule != tc.rule || d.Layer != wrenn.LayerSandbox || d.Allowed != (d.Rule[:5] == "allow" || d.Rule == "default allow") {
			t.Errorf("%s at %s:%d: %+v, want %s", tc.name, tc.addr, tc.port, d, tc.rule)
		}
	}
	if err := open.Check(); err != nil {
		t.Error(err)
	}
}

// TestLayers: a connection is allowed only if each layer allows it, and the decision
// names the layer.
func TestLayers(t *testing.T) {
	team := parsed(t, true, []string{"*.example.com", "192.0.2.0/24"}, nil)
	template := parsed(t, false, nil, []string{"192.0.2.9", "bad.example.com"})
	own := parsed(t, false, nil, []string{"192.0.2.10"})
	all := own.With(team, template)
	for _, tc := range []struct {
		name, addr string
		allowed    bool
		layer      wrenn.NetworkLayer
		rule       string
	}{
		{"", "192.0.2.1", true, "team", "allow 192.0.2.0/24"},
		{"", "192.0.2.9", false, "template", "deny 192.0.2.9"},
		{"", "192.0.2.10", false, "sandbox", "deny 192.0.2.10"},
		{"", "8.8.8.8", false, "team", "default deny"},
		{"a.example.com", "8.8.8.8", true, "team", "allow *.example.com"},
		{"bad.example.com", "8.8.8.8", false, "template", "deny bad.example.com"},
		{"other.test", "8.8.8.8", false, "team", "default deny"},
	} {
		d := all.Decide(tc.name, netip.MustParseAddr(tc.addr), 443)
		if d.Allowed != tc.allowed || d.Layer != tc.layer || d.Rule != tc.rule {
			t.Errorf("%s at %s: %+v", tc.name, tc.addr, d)
		}
	}
	addressesOnly := parsed(t, true, []string{"8.8.8.0/24"}, nil)
	if d := all.With(team, addressesOnly).Decide("a.example.com", netip.MustParseAddr("8.8.8.8"), 443); d.Allowed || d.Layer != "template" {
		t.Errorf("a layer without names allows a name: %+v", d)
	}
	if d := all.DecideName("bad.example.com", 0); d.Allowed || d.Layer != "template" {
		t.Errorf("a question for a denied name: %+v", d)
	}
	if err := all.Check(); err != nil || all.Equal(own) || !all.Equal(own.With(team, template)) || !own.With(wrenn.NetworkPolicy{}, wrenn.NetworkPolicy{}).Equal(own) {
		t.Errorf("layers are not compared: %v", err)
	}
	for name, p := range map[string]wrenn.NetworkPolicy{
		"of a sandbox": {Layers: []wrenn.NetworkLayerPolicy{team.AsLayer(wrenn.LayerSandbox)}},
		"twice":        {Layers: []wrenn.NetworkLayerPolicy{team.AsLayer(wrenn.LayerTeam), own.AsLayer(wrenn.LayerTeam)}},
		"invalid":      {Layers: []wrenn.NetworkLayerPolicy{{Layer: wrenn.LayerTeam, Names: []wrenn.NetworkName{{Domain: "example.com"}}}}},
	} {
		if err := p.Check(); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	for name, p := range map[string]wrenn.NetworkPolicy{
		"layers":      all,
		"headers":     {Headers: []wrenn.HeaderRule{{Host: wrenn.NetworkName{Domain: "example.com"}, Headers: []wrenn.Header{{Name: "a"}}}}},
		"DNS servers": {DNSServers: []netip.Addr{netip.MustParseAddr("1.1.1.1")}},
	} {
		if err := p.CheckLayer(); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("a layer with %s: %v, want Invalid", name, err)
		}
	}
}
