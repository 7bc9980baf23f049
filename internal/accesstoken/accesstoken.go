// Package accesstoken holds the rules of a sandbox's access token: how it is
// made, and which requests for envd it lets pass. envd and the gateway of the
// control plane both check by them.
package accesstoken

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
)

// Header carries the token.
const Header = "X-Access-Token"

// TrafficHeader carries the token for the ports of a private sandbox.
const TrafficHeader = "E2b-Traffic-Access-Token"

// Why a request is refused; SDKs and their users know these words.
const (
	Unauthorized     = "unauthorized access, please provide a valid access token or method signing if supported"
	Mismatch         = "access token present in header but does not match"
	MissingSignature = "missing signature query parameter"
	InvalidSignature = "invalid signature"
	Expired          = "signature is already expired"
)

// For returns the token of a sandbox: 64 hexadecimal digits. It follows from the
// seed and the id, so that it stays the same through pause and resume, and URLs
// that were signed with it stay valid.
func For(seed []byte, id wrenn.SandboxID) string {
	mac := hmac.New(sha256.New, seed)
	_, _ = mac.Write([]byte(id)) // never fails
	return hex.EncodeToString(mac.Sum(nil))
}

// ForTraffic returns the token for the ports of a private sandbox but that of its
// agent. Neither token follows from the other.
func ForTraffic(seed []byte, id wrenn.SandboxID) string { return For(seed, "traffic:"+id) }

// Refuse returns why r may not pass to envd, "" when it may: with the token in
// its header, for GET /health, or for /files with a signed URL. token must not
// be empty.
func Refuse(r *http.Request, token string, now time.Time) string {
	given := r.Header.Get(Header)
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/health", Equal(given, token):
		return ""
	case r.URL.Path != "/files":
		return Unauthorized
	case given != "":
		return Mismatch
	default:
		signed, reason := ParseSigned(r.Method, r.URL.Query())
		if reason != "" {
			return reason
		}
		return signed.Refuse(token, now)
	}
}

// Signed is a signed URL of /files. It may be of any sandbox: only the one with the
// right token accepts it.
type Signed struct {
	before, after string // what is signed before and after the token
	signature     string
	expires       int64 // Unix time in seconds
	expiring      bool
}

// ParseSigned reads a signed URL, and returns what is wrong with one that no
// sandbox accepts, "" when nothing is.
func ParseSigned(method string, query url.Values) (s Signed, reason string) {
	if s.signature = query.Get("signature"); s.signature == "" {
		return s, MissingSignature
	}
	operation := "read"
	switch method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		operation = "write"
	default:
		return s, Unauthorized
	}
	s.before = query.Get("path") + ":" + operation + ":" + query.Get("username") + ":"
	if s.expiring = query.Has("signature_expiration"); s.expiring {
		var err error
		if s.expires, err = strconv.ParseInt(query.Get("signature_expiration"), 10, 64); err != nil {
			return s, InvalidSignature
		}
		s.after = ":" + strconv.FormatInt(s.expires, 10)
	}
	return s, ""
}

// Refuse returns why the sandbox with the token refuses the URL, "" when it does
// not: InvalidSignature, or Expired for one that was its own.
func (s Signed) Refuse(token string, now time.Time) string {
	switch {
	case !Equal(s.signature, sign(s.before+token+s.after)):
		return InvalidSignature
	case s.expiring && s.expires < now.Unix():
		return Expired
	default:
		return ""
	}
}

// Sign returns v1_ and the SHA-256 of the parts joined by colons.
func Sign(parts []string) string { return sign(strings.Join(parts, ":")) }

func sign(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Equal reports whether the strings are the same, in a time that depends on their length alone.
func Equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
