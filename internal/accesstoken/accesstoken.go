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

	"wrenn"
)

// Header carries the token.
const Header = "X-Access-Token"

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
		return checkSignature(r.Method, r.URL.Query(), token, now)
	}
}

// checkSignature returns what is wrong with a signed URL, "" when nothing is.
func checkSignature(method string, query url.Values, token string, now time.Time) string {
	signature := query.Get("signature")
	if signature == "" {
		return MissingSignature
	}
	operation := "read"
	switch method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		operation = "write"
	default:
		return Unauthorized
	}
	parts := []string{query.Get("path"), operation, query.Get("username"), token}
	var expires int64
	expiring := query.Has("signature_expiration")
	if expiring {
		var err error
		if expires, err = strconv.ParseInt(query.Get("signature_expiration"), 10, 64); err != nil {
			return InvalidSignature
		}
		parts = append(parts, strconv.FormatInt(expires, 10))
	}
	switch {
	case !Equal(signature, Sign(parts)):
		return InvalidSignature
	case expiring && expires < now.Unix():
		return Expired
	default:
		return ""
	}
}

// Sign returns v1_ and the SHA-256 of the parts joined by colons.
func Sign(parts []string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// Equal reports whether the strings are the same, in a time that depends on their length alone.
func Equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
