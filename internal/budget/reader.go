package budget

import (
	"context"
	"io"
	"net/http"
)

const (
	// free is what a body may have without a reservation.
	free = 64 << 10
	// step is how much is reserved at a time.
	step = 256 << 10
)

// Body returns body, of which every byte beyond the first 64 KiB reserves cost bytes of
// r before it is read.
func Body(ctx context.Context, body io.ReadCloser, r *Reservation, cost int64) io.ReadCloser {
	if r == nil || body == nil || body == http.NoBody {
		return body
	}
	return &reader{ReadCloser: body, ctx: ctx, reservation: r, cost: cost, allowed: free}
}

type reader struct {
	io.ReadCloser

	ctx         context.Context
	reservation *Reservation
	cost        int64
	allowed     int // bytes that may still be read
}

func (b *reader) Read(p []byte) (int, error) {
	if b.allowed == 0 {
		if err := b.reservation.Grow(b.ctx, step*b.cost); err != nil {
			return 0, err
		}
		b.allowed = step
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.allowed)])
	b.allowed -= n
	return n, err
}

// answerCost is what a byte of an answer takes while it is received and decoded: a
// buffer that doubles when it is full, and the decoded message.
const answerCost = 3

type wholeKey struct{}

// Whole returns a context for a request whose answer is kept as a whole: a Transport
// reserves what it takes of ctx's reservation, if it has one.
func Whole(ctx context.Context) context.Context { return context.WithValue(ctx, wholeKey{}, true) }

// Transport makes requests, of which those with a context of Whole reserve memory.
type Transport struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil && req.Context().Value(wholeKey{}) != nil {
		resp.Body = Body(req.Context(), resp.Body, Of(req.Context()), answerCost)
	}
	return resp, err
}
