package auth

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/guest/settings"
)

const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"

func TestRefuse(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	signed := func(path, operation, user, expiration string) string {
		parts := []string{path, operation, user, token}
		q := url.Values{"path": {path}}
		if user != "" {
			q.Set("username", user)
		}
		if expiration != "" {
			parts = append(parts, expiration)
			q.Set("signature_expiration", expiration)
		}
		q.Set("signature", accesstoken.Sign(parts))
		return "/files?" + q.Encode()
	}
	const host, local = "192.0.2.7:4711", "127.0.0.1:4711"
	for _, tc := range []struct {
		name, method, url, header, from, want string
	}{
		{"token", "POST", "/process.Process/Start", token, local, ""},
		{"no token", "POST", "/process.Process/Start", "", local, accesstoken.Unauthorized},
		{"wrong token", "POST", "/process.Process/Start", token + "x", local, accesstoken.Unauthorized},
		{"health", "GET", "/health", "", local, ""},
		{"post to health", "POST", "/health", "", local, accesstoken.Unauthorized},
		{"metrics", "GET", "/metrics", "", local, accesstoken.Unauthorized},
		{"health by a detour", "GET", "/envs/../health", "", local, accesstoken.Unauthorized},
		{"init from the host", "POST", "/init", "", host, ""},
		{"init from the host with the new token", "POST", "/init", "new", host, ""},
		{"init from the guest", "POST", "/init", "", local, accesstoken.Unauthorized},
		{"init from the guest with the token", "POST", "/init", token, local, ""},
		{"init from nowhere", "POST", "/init", "", "@", accesstoken.Unauthorized},
		{"files with token", "GET", "/files?path=a", token, host, ""},
		{"files with a wrong token", "GET", signed("a", "read", "", ""), "x", host, accesstoken.Mismatch},
		{"files unsigned", "GET", "/files?path=a", "", host, accesstoken.MissingSignature},
		{"read", "GET", signed("a", "read", "", ""), "", host, ""},
		{"read as user", "GET", signed("a:b", "read", "user", ""), "", host, ""},
		{"head", "HEAD", signed("a", "read", "", ""), "", host, ""},
		{"write", "POST", signed("a", "write", "user", ""), "", host, ""},
		{"write with a signature for reading", "POST", signed("a", "read", "user", ""), "", host, accesstoken.InvalidSignature},
		{"other path", "GET", signed("a", "read", "", "") + "&x=", "", host, ""},
		{"not yet expired", "GET", signed("a", "read", "", "1800000000"), "", host, ""},
		{"expired", "GET", signed("a", "read", "", "1799999999"), "", host, accesstoken.Expired},
		{"expiration stripped", "GET", "/files?path=a&signature=" + url.QueryEscape(accesstoken.Sign([]string{"a", "read", "", token, "1900000000"})), "", host, accesstoken.InvalidSignature},
		{"expiration no number", "GET", signed("a", "read", "", "never"), "", host, accesstoken.InvalidSignature},
		{"forged and expired", "GET", "/files?path=a&signature=v1_x&signature_expiration=1", "", host, accesstoken.InvalidSignature},
		{"delete", "DELETE", signed("a", "read", "", ""), "", host, accesstoken.Unauthorized},
		{"compose cannot be signed", "POST", "/files/compose?signature=v1_x", "", host, accesstoken.Unauthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(tc.method, tc.url, nil)
			r.RemoteAddr = tc.from
			if tc.header != "" {
				r.Header.Set(accesstoken.Header, tc.header)
			}
			if got := refuse(r, token, now); got != tc.want {
				t.Errorf("refuse() = %q, want %q", got, tc.want)
			}
			if got := refuse(r, "", now); got != "" {
				t.Errorf("without a token refuse() = %q, want it to pass", got)
			}
		})
	}
}

func TestFromGuestOwnAddress(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		prefix := netip.MustParsePrefix(addr.String())
		if remote := netip.AddrPortFrom(prefix.Addr(), 80).String(); !fromGuest(remote) {
			t.Errorf("fromGuest(%s) = false, want true for an address of this machine", remote)
		}
	}
	if fromGuest("[2001:db8::7]:80") {
		t.Error("fromGuest() = true for a foreign address")
	}
}

func TestRequire(t *testing.T) {
	s := &settings.Settings{}
	s.Update(func(v *settings.Values) { v.Token = token })
	deny := func(w http.ResponseWriter, status int, message string) { http.Error(w, message, status) }
	h := Require(s, deny, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	for header, want := range map[string]int{token: http.StatusNoContent, "": http.StatusUnauthorized} {
		r := httptest.NewRequest(http.MethodGet, "/envs", nil)
		r.Header.Set(accesstoken.Header, header)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("with token %q: status %d, want %d", header, w.Code, want)
		}
	}
}

func FuzzFromGuest(f *testing.F) {
	f.Add("127.0.0.1:80")
	f.Add("[fe80::1%eth0]:80")
	f.Fuzz(func(t *testing.T, remote string) {
		if peer, err := netip.ParseAddrPort(remote); (err != nil || peer.Addr().IsLoopback()) && !fromGuest(remote) {
			t.Fatalf("fromGuest(%q) = false", remote)
		}
	})
}
