package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"
)

// LogsOptions are optional settings of Logs.
type LogsOptions struct {
	Follow bool // continue with new output until the sandbox ends

	// Since leaves out what was printed before it, to about a second. Zero is everything.
	Since time.Time
}

// Logs returns the console of a sandbox: what its kernel, its init and its agent
// printed. The server keeps only the latest part, and keeps it for a while after
// a sandbox ended by itself. The caller closes the result. When the stream is
// cut, Read returns an error other than io.EOF.
func (c *Client) Logs(ctx context.Context, id string, opts LogsOptions) (io.ReadCloser, error) {
	query := url.Values{}
	if opts.Follow {
		query.Set("follow", "true")
	}
	if !opts.Since.IsZero() {
		query.Set("since", opts.Since.UTC().Format(time.RFC3339Nano))
	}
	return c.stream(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/logs"), query: query})
}
