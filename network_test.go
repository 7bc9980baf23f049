package wrenn_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn"
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
		"names of hosts": {"example.com"},
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
}
