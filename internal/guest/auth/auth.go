// Package auth decides which requests the agent answers: those with the sandbox's
// access token, and for files those with a URL that was signed with it.
package auth

import (
	"net"
	"net/http"
	"net/netip"
	"time"

	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/guest/settings"
)

// Require passes allowed requests to next; deny answers the others with 401 and the reason.
//
// Without a token in the settings every request is allowed. With one, GET /health
// needs none, /files may be signed instead, and POST /init, /freeze, /thaw and /grow need none from the
// host, so that a copy of a sandbox can get another token, but from programs in the guest.
func Require(s *settings.Settings, deny func(w http.ResponseWriter, status int, message string), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reason := refuse(r, s.Token(), time.Now()); reason != "" {
			deny(w, http.StatusUnauthorized, reason)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse returns why r is refused, "" when it is allowed.
func refuse(r *http.Request, token string, now time.Time) string {
	switch {
	case token == "":
		return ""
	case r.Method == http.MethodPost && control(r.URL.Path) && !fromGuest(r.RemoteAddr):
		return ""
	default:
		return accesstoken.Refuse(r, token, now)
	}
}

// control reports whether a path is one of the host's calls.
func control(path string) bool {
	return path == "/init" || path == "/freeze" || path == "/thaw" || path == "/grow"
}

// fromGuest reports whether the peer is a program on this machine, by its
// address. A peer with an address that cannot be parsed counts as one.
func fromGuest(remote string) bool {
	peer, err := netip.ParseAddrPort(remote)
	if err != nil {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil || peer.Addr().IsLoopback() {
		return true
	}
	for _, addr := range own {
		prefix, err := netip.ParsePrefix(addr.String())
		if err == nil && prefix.Addr() == peer.Addr().Unmap().WithZone("") {
			return true
		}
	}
	return false
}
