// Package untrusted makes HTTP clients of servers that may be hostile: a guest's
// agent, a VMM that has run a guest, a host that was taken over.
package untrusted

import "net/http"

// maxHeader bounds the header of an answer. net/http allows 10 MiB, of which a
// server that sends it and then stalls makes its client hold three times as much.
const maxHeader = 16 << 10

// Client returns a client over transport, which it changes: headers of answers are
// bounded. The client follows no redirect: an answer of 3xx is returned as it is.
func Client(transport *http.Transport) *http.Client {
	transport.MaxResponseHeaderBytes = maxHeader
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
