package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// LogsOptions may be left out.
type LogsOptions struct {
	Follow bool // go on with what comes, until the sandbox ends
}

// Logs reads what the console of a sandbox said: its kernel, its init and its
// agent, as they printed it. The server keeps the end; of a sandbox that ended
// by itself for a while. The caller closes it. A stream that is cut is an error
// of Read, never io.EOF.
func (c *Client) Logs(ctx context.Context, id string, opts LogsOptions) (io.ReadCloser, error) {
	query := url.Values{}
	if opts.Follow {
		query.Set("follow", "true")
	}
	return c.stream(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/logs"), query: query})
}
