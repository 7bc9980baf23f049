package wrenn_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func TestParseEgressProxy(t *testing.T) {
	for text, want := range map[string]wrenn.EgressProxy{
		"socks5://proxy.example.com:1080":            {Protocol: wrenn.ProxySOCKS5, Host: "proxy.example.com", Port: 1080},
		"socks5s://me:p%40ss@Proxy.Example.com:1080": {Protocol: wrenn.ProxySOCKS5, Host: "proxy.example.com", Port: 1080, Username: "me", HasPassword: true, Password: "p@ss", TLS: &wrenn.ProxyTLS{}},
		"http://192.0.2.7:3128/":                     {Protocol: wrenn.ProxyHTTP, Host: "192.0.2.7", Port: 3128},
		"https://me@192.0.2.7:3128":                  {Protocol: wrenn.ProxyHTTP, Host: "192.0.2.7", Port: 3128, Username: "me", TLS: &wrenn.ProxyTLS{}},
	} {
		got, err := wrenn.ParseEgressProxy(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	for _, text := range []string{
		"proxy.example.com:1080", "ftp://me:secret@proxy.example.com:1", "socks5://me:secret@proxy.example.com", "socks5://me@proxy.example.com:1",
		"socks5://me:secret@[::1]:1", "socks5://me:secret@proxy.example.com:1/x", "socks5://:secret@proxy.example.com:1", "http://me:secret@proxy:70000",
		"socks5://me:secret@proxy.example.com:1?x", "socks5://me:sec%0aret@proxy.example.com:1", "socks5://me:" + strings.Repeat("secret", 50) + "@proxy.example.com:1", "socks5://%zz:secret@x",
	} {
		_, err := wrenn.ParseEgressProxy(text)
		if wrenn.CodeOf(err) != wrenn.Invalid || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestProxyPasswordIsHidden(t *testing.T) {
	proxy, err := wrenn.ParseEgressProxy("socks5://me:secret@proxy.example.com:1080")
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, proxy); strings.Contains(text, "secret") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
}

func TestDecideProxy(t *testing.T) {
	proxy, err := wrenn.ParseEgressProxy("socks5://proxy.example.com:1080")
	if err != nil {
		t.Fatal(err)
	}
	parse := func(deny bool, allow, denied []string) wrenn.NetworkPolicy {
		p, err := wrenn.ParseNetworkPolicy(deny, allow, denied)
		if err != nil {
			t.Fatal(err)
		}
		p.Proxy = proxy
		return p
	}
	addr := netip.MustParseAddr("192.0.2.7")
	own := parse(true, []string{"api.example.com"}, nil)
	for name, tc := range map[string]struct {
		policy wrenn.NetworkPolicy
		want   bool
	}{
		"the sandbox denies by default":   {own, true},
		"the sandbox denies its address":  {parse(false, nil, []string{"192.0.2.0/24"}), false},
		"the team denies by default":      {own.With(parse(true, nil, nil), wrenn.NetworkPolicy{}), false},
		"the team allows its name":        {own.With(parse(true, []string{"proxy.example.com"}, nil), wrenn.NetworkPolicy{}), true},
		"the team denies its name":        {own.With(parse(false, nil, []string{"*.example.com"}), wrenn.NetworkPolicy{}), false},
		"the template allows its address": {own.With(wrenn.NetworkPolicy{}, parse(true, []string{"192.0.2.7"}, nil)), true},
	} {
		if got := tc.policy.DecideProxy(addr).Allowed; got != tc.want {
			t.Errorf("%s: allowed %t, want %t", name, got, tc.want)
		}
	}
}
