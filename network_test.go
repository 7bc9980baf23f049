package wrenn_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func TestParseNetworkPolicy(t *testing.T) {
	prefix := netip.MustParsePrefix
	comparePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	for _, tc := range []struct {
		name         string
		denyDefault  bool
		allow, deny  []string
		want         wrenn.NetworkPolicy
		allow2, out2 string // as people write them
	}{
		{name: "nothing"},
		{name: "no internet", deny: []string{"0.0.0.0/0"}, want: wrenn.NetworkPolicy{DenyByDefault: true}},
		{name: "no internet, twice", denyDefault: true, deny: []string{"1.1.1.1", "0.0.0.0/0"},
			want: wrenn.NetworkPolicy{DenyByDefault: true, Deny: []netip.Prefix{prefix("1.1.1.1/32")}}, out2: "1.1.1.1"},
		{name: "not masked", allow: []string{"8.8.8.8/24", "1.1.1.1/32"},
			want: wrenn.NetworkPolicy{Allow: []netip.Prefix{prefix("8.8.8.0/24"), prefix("1.1.1.1/32")}}, allow2: "8.8.8.0/24 1.1.1.1"},
		{name: "names", denyDefault: true, allow: []string{"Example.COM.", "1.1.1.1", "*.example.org:8443", "a_b.xn--bcher-kva.ch", "bad.cafe"},
			want: wrenn.NetworkPolicy{DenyByDefault: true, Allow: []netip.Prefix{prefix("1.1.1.1/32")}, Names: []wrenn.NetworkName{
				{Domain: "example.com"}, {Domain: "*.example.org", Port: 8443}, {Domain: "a_b.xn--bcher-kva.ch"}, {Domain: "bad.cafe"}}},
			allow2: "1.1.1.1 example.com *.example.org:8443 a_b.xn--bcher-kva.ch bad.cafe"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := wrenn.ParseNetworkPolicy(tc.denyDefault, tc.allow, tc.deny)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, comparePrefix); diff != "" {
				t.Error(diff)
			}
			if err := got.Check(); err != nil {
				t.Error(err)
			}
			if a, d := strings.Join(got.AllowTexts(), " "), strings.Join(got.DenyTexts(), " "); a != tc.allow2 || d != tc.out2 {
				t.Errorf("texts %q, %q", a, d)
			}
		})
	}
}

func TestInvalidNetworkPolicies(t *testing.T) {
	var many []string
	for i := range wrenn.MaxNetworkRules + 1 {
		many = append(many, fmt.Sprintf("1.2.%d.%d", i/256, i%256))
	}
	for text, rules := range map[string][]string{
		"not an IPv4":    {"1.2.3.4/33"},
		"network rule":   {""},
		"no IPv6":        {"::/0"},
		"at most 256":    many,
		`"1.2.3.4:80"`:   {"1.2.3.4:80"},
		`"fe80::1%eth0"`: {"fe80::1%eth0"},
	} {
		for _, lists := range [][2][]string{{rules, nil}, {nil, rules}} {
			_, err := wrenn.ParseNetworkPolicy(false, lists[0], lists[1])
			if wrenn.CodeOf(err) != wrenn.Invalid || !strings.Contains(err.Error(), text) {
				t.Errorf("%.60v: %v, want Invalid with %q", rules, err, text)
			}
		}
	}
	for rule, text := range map[string]string{
		"*":                              "choose the default",
		"*.*.com":                        "neither",
		"a*.example.com":                 "neither",
		"bücher.ch":                      "xn--",
		"-a.example.com":                 "neither",
		"a..com":                         "neither",
		"localhost":                      "full name",
		"example.com:0":                  "not a port",
		"example.com:65536":              "not a port",
		"example.com:+1":                 "not a port",
		"x.1":                            "neither",
		strings.Repeat("a.", 127) + "a":  "at most 253",
		strings.Repeat("a", 64) + ".com": "neither",
		"https://example.com":            "not an IPv4",
	} {
		_, err := wrenn.ParseNetworkPolicy(true, []string{rule}, nil)
		if wrenn.CodeOf(err) != wrenn.Invalid || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, want Invalid with %q", rule, err, text)
		}
	}
	for name, p := range map[string]func() (wrenn.NetworkPolicy, error){
		"names without deny": func() (wrenn.NetworkPolicy, error) {
			return wrenn.ParseNetworkPolicy(false, []string{"example.com"}, nil)
		},
		"a port of an address": func() (wrenn.NetworkPolicy, error) {
			return wrenn.ParseNetworkPolicy(true, nil, []string{"1.2.3.4:80"})
		},
	} {
		if _, err := p(); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}

func TestNetworkNames(t *testing.T) {
	p, err := wrenn.ParseNetworkPolicy(true, []string{"example.com:443", "*.example.org", "1.2.3.0/24"}, []string{"1.2.0.0/16", "9.9.9.9"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		host string
		port uint16
		want bool
	}{
		{"example.com", 443, true}, {"example.com", 0, true}, {"example.com", 80, false}, {"www.example.com", 443, false},
		{"example.org", 443, false}, {"a.example.org", 80, true}, {"a.b.example.org", 1, true}, {"badexample.org", 1, false}, {"", 0, false},
	} {
		if got := p.DecideName(tc.host, tc.port); got.Allowed != tc.want {
			t.Errorf("DecideName(%q, %d) = %+v", tc.host, tc.port, got)
		}
	}
	for addr, want := range map[string]bool{"1.2.3.4": true, "1.2.4.4": false, "9.9.9.9": false, "8.8.8.8": true} {
		if got := p.Decide("example.com", netip.MustParseAddr(addr), 443); got.Allowed != want {
			t.Errorf("Decide(example.com, %s) = %+v", addr, got)
		}
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again wrenn.NetworkPolicy
	if err := json.Unmarshal(text, &again); err != nil || !again.Equal(p) {
		t.Errorf("%s is read as %v, %v", text, again, err)
	}
}
