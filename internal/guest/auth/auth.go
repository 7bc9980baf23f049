// Package auth decides which requests the agent answers: those with the sandbox's
// access token, and for files those with a URL that was signed with it.
package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wrenn/internal/guest/settings"
)

// Header carries the token.
const Header = "X-Access-Token"

// The messages for callers. SDKs and their users know these words.
const (
	msgUnauthorized     = "unauthorized access, please provide a valid access token or method signing if supported"
	msgMismatch         = "access token present in header but does not match"
	msgMissingSignature = "missing signature query parameter"
	msgInvalidSignature = "invalid signature"
	msgExpired          = "signature is already expired"
)

// Require passes allowed requests to next; deny answers the others with 401 and the reason.
//
// Without a token in the settings every request is allowed. With one, GET /health
// needs none, /files may be signed instead, and POST /init, /freeze and /thaw need none from the
// host, so that a copy of a sandbox can get another token, but from programs in the guest.
func Require(s *settings.Settings, deny func(w http.ResponseWriter, status int, message string), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reason := refuse(r, s.Get().Token, time.Now()); reason != "" {
			deny(w, http.StatusUnauthorized, reason)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse returns why r is refused, "" when it is allowed.
func refuse(r *http.Request, token string, now time.Time) string {
	given := r.Header.Get(Header)
	switch {
	case token == "", r.Method == http.MethodGet && r.URL.Path == "/health", equal(given, token):
		return ""
	case r.Method == http.MethodPost && control(r.URL.Path) && !fromGuest(r.RemoteAddr):
		return ""
	case r.URL.Path != "/files":
		return msgUnauthorized
	case given != "":
		return msgMismatch
	default:
		return checkSignature(r.Method, r.URL.Query(), token, now)
	}
}

// control reports whether a path is one of the host's calls.
func control(path string) bool { return path == "/init" || path == "/freeze" || path == "/thaw" }

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

// checkSignature returns what is wrong with a signed URL, "" when it is valid.
func checkSignature(method string, query url.Values, token string, now time.Time) string {
	signature := query.Get("signature")
	if signature == "" {
		return msgMissingSignature
	}
	operation := "read"
	switch method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		operation = "write"
	default:
		return msgUnauthorized
	}
	parts := []string{query.Get("path"), operation, query.Get("username"), token}
	var expires int64
	expiring := query.Has("signature_expiration")
	if expiring {
		var err error
		if expires, err = strconv.ParseInt(query.Get("signature_expiration"), 10, 64); err != nil {
			return msgInvalidSignature
		}
		parts = append(parts, strconv.FormatInt(expires, 10))
	}
	switch {
	case !equal(signature, sign(parts)):
		return msgInvalidSignature
	case expiring && expires < now.Unix():
		return msgExpired
	default:
		return ""
	}
}

// sign returns v1_ and the SHA-256 of the parts joined by colons.
func sign(parts []string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// equal compares in the same time for all strings of one length.
func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
