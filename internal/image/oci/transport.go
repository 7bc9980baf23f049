package oci

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"wrenn.dev"
)

// maxDocument bounds the manifest and the configuration of an image, which are
// read into memory. It is the size of manifest that registries must accept, see
// the OCI distribution specification.
const maxDocument = 4 << 20

// A registry may be silent for maxSilence in the middle of an answer, and fall
// behind minRate, in bytes a second, by the same time in total. A limit is needed
// because other builds wait for one that is slow.
const (
	maxSilence = time.Minute
	minRate    = 32 << 10
)

// careful is a transport for registries that are not trusted.
type careful struct {
	next    http.RoundTripper
	silence time.Duration
}

// RoundTrip implements http.RoundTripper.
func (c careful) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, end := context.WithCancelCause(r.Context())
	answer, err := c.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		end(nil)
		return nil, err
	}
	answer.Body = watch(ctx, end, answer.Body, c.silence)
	if strings.Contains(original(r).URL.Path, "/manifests/") {
		answer.Body = &document{ReadCloser: answer.Body, left: maxDocument}
	}
	return answer, nil
}

// watched is a body whose Read fails when no data comes, or too little. It counts
// only the time inside Read, not the pauses of its reader.
type watched struct {
	io.ReadCloser
	ctx      context.Context // of the request
	end      context.CancelCauseFunc
	silence  time.Duration
	slow     error // the cause that ends ctx
	received int64
	waited   time.Duration
}

// watch returns a watched body of a request with the context ctx, which end cancels.
func watch(ctx context.Context, end context.CancelCauseFunc, body io.ReadCloser, silence time.Duration) *watched {
	slow := wrenn.Errorf(wrenn.Unavailable, "the registry sent nothing for %v, or less than %d KiB a second: try again", silence, minRate>>10)
	return &watched{ReadCloser: body, ctx: ctx, end: end, silence: silence, slow: slow}
}

func (w *watched) Read(p []byte) (int, error) {
	ahead := time.Duration(w.received/minRate)*time.Second - w.waited
	timer := time.AfterFunc(w.silence+min(ahead, 0), func() { w.end(w.slow) })
	began := time.Now()
	n, err := w.ReadCloser.Read(p)
	timer.Stop()
	w.received += int64(n)
	w.waited += time.Since(began)
	if err != nil && errors.Is(context.Cause(w.ctx), w.slow) {
		err = w.slow
	}
	return n, err
}

func (w *watched) Close() error {
	defer w.end(nil)
	return w.ReadCloser.Close()
}

// original returns the request before all redirects.
func original(r *http.Request) *http.Request {
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return r
}

// document is a body of at most left bytes.
type document struct {
	io.ReadCloser
	left int
}

func (d *document) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p[:min(len(p), d.left+1)])
	if d.left -= n; d.left < 0 {
		return 0, tooLarge("manifest")
	}
	return n, err
}

func tooLarge(what string) error {
	return wrenn.Errorf(wrenn.Invalid, "the image's %s has more than %d MiB", what, maxDocument>>20)
}
