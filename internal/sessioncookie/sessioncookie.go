// Package sessioncookie has the cookie of a browser that has signed in to the
// dashboard, and keeps it apart from programs in sandboxes: some of their pages have
// the origin of the API, or a host name below the same domain.
package sessioncookie

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	plain = "wrenn_session"
	// secure is accepted by browsers from TLS alone, and ends with plain.
	secure = "__Secure-wrenn_session"
	// path is where browsers send it: never to ports of sandboxes below /p/.
	path = "/v1"
)

// New returns the cookie until a time; one that has passed removes it. overTLS says
// that the browser has loaded the page by TLS.
func New(value string, expires time.Time, overTLS bool) *http.Cookie {
	c := &http.Cookie{Name: plain, Value: value, Path: path, Expires: expires, HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if overTLS {
		c.Name, c.Secure = secure, true
	}
	return c
}

// Of returns the value of the request's cookie, "" without one. Two different ones
// count as none: a page below the same domain may have set the other.
func Of(r *http.Request) string {
	value := ""
	for _, name := range []string{plain, secure} {
		for _, c := range r.CookiesNamed(name) {
			if value != "" && c.Value != value {
				return ""
			}
			value = c.Value
		}
	}
	return value
}

// Remove removes the cookie from the header of a request, and leaves the others as they are.
func Remove(h http.Header) {
	lines := h["Cookie"]
	if !slices.ContainsFunc(lines, names) {
		return
	}
	h.Del("Cookie")
	for _, line := range lines {
		var kept []string
		for cookie := range strings.SplitSeq(line, ";") {
			if !names(cookie) {
				kept = append(kept, strings.TrimSpace(cookie))
			}
		}
		if len(kept) > 0 {
			h.Add("Cookie", strings.Join(kept, "; "))
		}
	}
}

// Refuse removes what would set the cookie from the header of a response.
func Refuse(h http.Header) {
	lines := h["Set-Cookie"]
	if !slices.ContainsFunc(lines, names) {
		return
	}
	h.Del("Set-Cookie")
	for _, line := range lines {
		if !names(line) {
			h.Add("Set-Cookie", line)
		}
	}
}

// names reports whether a text may be, or set, the cookie: also in ways that only some
// programs read so.
func names(text string) bool { return strings.Contains(strings.ToLower(text), plain) }
