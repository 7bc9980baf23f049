package hostclient

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// Console reads a sandbox's console and, with Follow, its further output until
// the sandbox ends. NotFound when the host has no output of it, Unavailable when its agent
// is too old for Since. The caller closes
// the reader; the end of ctx ends it, too. A broken stream is an error of Read,
// never io.EOF.
func (c *Client) Console(ctx context.Context, id wrenn.SandboxID, query wrenn.ConsoleQuery) (io.ReadCloser, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	r := &console{peer: c.peer, dog: dog}
	req := &pb.ReadConsoleRequest{SandboxId: string(id), Follow: query.Follow}
	if !query.Since.IsZero() {
		req.Since = timestamppb.New(query.Since)
	}
	var err error
	dog.during(func() { // until the host's first message; later it may be silent for long
		r.stream, err = c.streams.ReadConsole(c.meant(ctx), req)
		if err == nil {
			err = r.next()
		}
	})
	if err == nil && req.GetSince() != nil && !r.stream.Msg().GetTimed() {
		err = wrenn.Errorf(wrenn.Unavailable, "%s does not know when output was printed: its agent is of an older version; update it, or read everything", c.peer)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.transferError(ctx, err)
		dog.stop()
		return nil, err
	}
	return r, nil
}

type console struct {
	peer   string
	stream *connect.ServerStreamForClient[pb.ReadConsoleResponse]
	dog    *watchdog
	chunk  []byte
}

// next receives a chunk. It returns io.EOF at the end.
func (r *console) next() error {
	if r.stream.Receive() {
		r.chunk = r.stream.Msg().GetChunk()
		return nil
	}
	if err := r.stream.Err(); err != nil {
		return wire.FromConnect(r.peer, err)
	}
	return io.EOF
}

func (r *console) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 && len(p) > 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func (r *console) Close() error {
	r.dog.stop()
	return nil
}
