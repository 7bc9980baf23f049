package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// maxEvent bounds a line of a stream of events.
const maxEvent = 16 << 20

// events is a stream of server-sent events.
type events struct {
	body   io.ReadCloser
	lines  *bufio.Scanner
	broken func(error) error
}

// events opens a stream of events, whose body the caller closes.
func (c *Client) events(ctx context.Context, r request) (*events, error) {
	body, err := c.stream(ctx, r)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxEvent)
	return &events{body: body, lines: lines, broken: func(err error) error { return c.broken(ctx, err) }}, nil
}

// next returns the next event that has data. The server ends no stream by itself without
// saying so: an end is an error.
func (e *events) next() (name string, data []byte, err error) {
	for e.lines.Scan() {
		line := e.lines.Text()
		switch {
		case strings.HasPrefix(line, "event: "):
			name = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			return name, []byte(line[len("data: "):]), nil // the server's data is one line
		}
	}
	if err := e.lines.Err(); err != nil {
		if CodeOf(err) != "" {
			return "", nil, err // of the body
		}
		return "", nil, e.broken(err)
	}
	return "", nil, e.broken(io.ErrUnexpectedEOF)
}

func (e *events) decode(data []byte, out any) error {
	if err := json.Unmarshal(data, out); err != nil {
		return e.broken(fmt.Errorf("read an event: %w", err))
	}
	return nil
}
