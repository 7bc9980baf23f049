package contract

import (
	"net/http"
	"strings"
)

// SecretIn returns the API key in a request's headers, X-API-Key or a bearer
// token; "" if it has none.
func SecretIn(r *http.Request) string {
	if key := r.Header.Get("X-API-Key"); key != "" {
		return key
	}
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}
