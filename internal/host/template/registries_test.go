package template

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"wrenn.dev"
)

func TestRegistriesCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		registries Registries
		ref        string
		code       wrenn.Code
	}{
		"any":                   {Registries{AnyRegistry}, "registry.example/a:1", ""},
		"docker's by name":      {Registries{"docker.io"}, "debian:12", ""},
		"another than docker's": {Registries{"docker.io"}, "registry.example/a:1", wrenn.PermissionDenied},
		"all ports":             {Registries{"registry.example"}, "registry.example:5000/a:1", ""},
		"that port":             {Registries{"registry.example:5000"}, "registry.example:5000/a:1", ""},
		"another port":          {Registries{"registry.example:5000"}, "registry.example:5001/a:1", wrenn.PermissionDenied},
		"none":                  {nil, "debian:12", wrenn.PermissionDenied},
		"no reference":          {Registries{AnyRegistry}, "docker-archive:/x", wrenn.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.registries.check(tt.ref); wrenn.CodeOf(err) != tt.code {
				t.Errorf("check(%q) = %v, want %q", tt.ref, err, tt.code)
			}
		})
	}
}

// TestRegistriesDial: what "any" allows has no way to this machine, what is named has.
func TestRegistriesDial(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		t.Setenv(name, "")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	get := func(r Registries) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := r.transport(host+"/a:1", nil).RoundTrip(req)
		if err == nil {
			res.Body.Close()
		}
		return err
	}
	if err := get(Registries{AnyRegistry}); wrenn.CodeOf(err) != wrenn.PermissionDenied {
		t.Errorf("any registry: %v", err)
	}
	if err := get(Registries{AnyRegistry, "127.0.0.1"}); err != nil {
		t.Errorf("a registry that is named: %v", err)
	}
}

// TestOnlyPublic: a name may resolve to any address.
func TestOnlyPublic(t *testing.T) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	refused := []string{"10.0.0.1", "168.63.129.16", "192.0.0.8", "64:ff9b::a00:1", "1.2.3.4"}
	for _, a := range own {
		refused = append(refused, netip.MustParsePrefix(a.String()).Addr().String())
	}
	dial := onlyPublic([]netip.Prefix{netip.MustParsePrefix("1.2.3.0/24")})
	for _, ip := range refused {
		if err := dial(t.Context(), "tcp", net.JoinHostPort(ip, "443"), nil); wrenn.CodeOf(err) != wrenn.PermissionDenied {
			t.Errorf("%s: %v", ip, err)
		}
	}
	for _, ip := range []string{"1.2.4.4", "2606:4700::1111"} {
		if err := dial(t.Context(), "tcp", net.JoinHostPort(ip, "443"), nil); err != nil {
			t.Errorf("%s: %v", ip, err)
		}
	}
}
