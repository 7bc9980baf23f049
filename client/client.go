// Package client is the Go SDK of Wrenn: sandboxes, the commands and files in
// them, and API keys, over the public API under /v1.
//
//	c, err := client.New(client.Config{URL: "http://127.0.0.1:8080", Key: os.Getenv("WRENN_API_KEY")})
//	sb, err := c.CreateSandbox(ctx, client.CreateSandbox{})
//	result, err := c.Exec(ctx, sb.ID, client.Command{Cmd: "uname", Args: []string{"-a"}})
//
// Every failure that the server reports, and every failure to reach it, is an
// *Error with a code. Only a Stream retries by itself: it resumes after a lost
// connection. For all other calls the caller decides; Error.RetryAfter is the
// earliest time at which a retry makes sense.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

const (
	// maxAnswer bounds a JSON response: the largest is a full page of sandboxes with the most metadata allowed.
	maxAnswer = 64 << 20
	// maxProblem bounds how much of an error response is read.
	maxProblem = 64 << 10

	headerKey   = "X-API-Key"
	mediaJSON   = "application/json"
	connections = 64 // idle connections kept open
)

// Config names the server and the API key. Both URL and Key are required.
type Config struct {
	// URL is the server's address, such as http://127.0.0.1:8080 or https://wrenn.example.com.
	URL string
	// Key is the API key. Every request carries it: use https unless the server is on this machine.
	Key string
	// HTTP sends the requests; nil means a suitable default. It must not have a
	// Timeout, which would end streams, and it must speak HTTP/1.1: a
	// WebSocket cannot be opened over HTTP/2.
	HTTP *http.Client
	// UserAgent names the program to the server; "" means wrenn-go.
	UserAgent string
}

// Client talks to one server as one team. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	key   string
	agent string
	http  *http.Client
}

// New returns a client. It does not connect to the server yet.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, &Error{Code: InvalidRequest, Message: fmt.Sprintf("%q is not a server's address: it must start with http:// or https://", cfg.URL)}
	}
	base.Path = strings.TrimRight(base.Path, "/")
	c := &Client{base: base, key: cfg.Key, agent: cfg.UserAgent, http: cfg.HTTP}
	if c.agent == "" {
		c.agent = "wrenn-go"
	}
	if c.http == nil {
		c.http = newHTTP()
	}
	return c, nil
}

func newHTTP() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	transport.ForceAttemptHTTP2 = false
	transport.MaxIdleConnsPerHost = connections
	transport.DisableCompression = true // files must arrive with the bytes and the length that the server sent
	return &http.Client{
		Transport: transport,
		// Following a redirect would send the key to another server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// URL returns the server's address.
func (c *Client) URL() string { return c.base.String() }

// Ready returns nil when the server is ready for requests. It needs no key.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, request{method: http.MethodGet, path: "/ready"}, nil)
}

// Version is what a program was built from.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // "" if it is unknown
	Date    string `json:"date"`   // of the commit; "" if it is unknown
}

// Version returns what the server was built from. It needs no key.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.call(ctx, request{method: http.MethodGet, path: "/version"}, &v)
	return v, err
}

// request is one call.
type request struct {
	method, path string // path is escaped
	query        url.Values
	body         any       // sent as JSON; nil for none
	stream       io.Reader // instead of body
	media        string    // content type of stream
}

// call sends r and decodes the response into out, unless out is nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	_, err := c.callHeader(ctx, r, out)
	return err
}

// callHeader is like call and also returns the response's header.
func (c *Client) callHeader(ctx context.Context, r request, out any) (http.Header, error) {
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxProblem)) // so that the connection can be used again
		return resp.Header, c.broken(ctx, err)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return nil, c.broken(ctx, fmt.Errorf("read the response to %s %s: %w", r.method, r.path, err))
	}
	return resp.Header, nil
}

// send returns a successful response; the caller closes its body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	body, media := r.stream, r.media
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, &Error{Code: InvalidRequest, Message: "the request cannot be written as JSON", Err: err}
		}
		body, media = bytes.NewReader(text), mediaJSON
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.address(r.path, r.query), body)
	if err != nil {
		return nil, err
	}
	c.sign(req.Header)
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	if r.stream != nil {
		// The server can then refuse before a long file is sent.
		req.Header.Set("Expect", "100-continue")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, problem(resp)
	}
	return resp, nil
}

func (c *Client) sign(header http.Header) {
	header.Set("User-Agent", c.agent)
	if c.key != "" {
		header.Set(headerKey, c.key)
	}
}

func (c *Client) address(path string, query url.Values) string {
	address := c.base.String() + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	return address
}
