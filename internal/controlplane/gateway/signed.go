package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
)

// isSigned reports whether a request that names no sandbox is for a file of one all
// the same: where one URL serves all sandboxes, as E2B_SANDBOX_URL, the signed URLs
// that E2B's SDKs make have no id.
func isSigned(r *http.Request) bool { return r.URL.Path == "/files" }

// serveSigned passes on a request with a signed URL to the sandbox whose token has
// signed it.
func (g *Gateway) serveSigned(w http.ResponseWriter, r *http.Request) {
	var to target
	if g.misses.TooMany(r.RemoteAddr) {
		g.answer(w, r, http.StatusTooManyRequests, to, tooManyMisses)
		return
	}
	signed, reason := accesstoken.ParseSigned(r.Method, r.URL.Query())
	if reason != "" {
		g.answer(w, r, http.StatusUnauthorized, to, reason)
		return
	}
	id, reason, err := g.signers.find(r.Context(), signed)
	switch {
	case err != nil:
		g.answer(w, r, http.StatusServiceUnavailable, to, said(err))
	case reason != "":
		g.misses.Count(r.RemoteAddr)
		g.answer(w, r, http.StatusUnauthorized, to, reason)
	default:
		g.serve(w, r, target{id: id, port: EnvdPort, shared: true}, nil)
	}
}

// signers are the sandboxes that may have signed a URL.
type signers struct {
	sandboxes Sandboxes

	reading sync.Mutex // held while the tokens are read, once for all that wait
	mu      sync.Mutex // guards what follows
	tokens  map[wrenn.SandboxID]string
	read    time.Time // when the tokens began to be read
}

// find returns the sandbox that has signed a URL, or the reason why none accepts it.
func (s *signers) find(ctx context.Context, signed accesstoken.Signed) (id wrenn.SandboxID, reason string, err error) {
	asked := time.Now()
	if id, reason := s.search(signed, asked); id != "" {
		return id, reason, nil
	}
	// The sandbox may have been made since.
	if err := s.refresh(ctx, asked); err != nil {
		return "", "", err
	}
	id, reason = s.search(signed, asked)
	return id, reason, nil
}

// search returns the sandbox that has signed a URL, also one that has expired.
func (s *signers) search(signed accesstoken.Signed, now time.Time) (wrenn.SandboxID, string) {
	s.mu.Lock()
	tokens := s.tokens // which never changes
	s.mu.Unlock()
	for id, token := range tokens {
		if reason := signed.Refuse(token, now); reason != accesstoken.InvalidSignature {
			return id, reason
		}
	}
	return "", accesstoken.InvalidSignature
}

// refresh reads the tokens unless that was begun after a time.
func (s *signers) refresh(ctx context.Context, after time.Time) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	fresh := s.read.After(after)
	s.mu.Unlock()
	if fresh {
		return nil
	}
	began := time.Now()
	tokens, err := s.sandboxes.Tokens(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens, s.read = tokens, began
	return nil
}
