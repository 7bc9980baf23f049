package server

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	pb "wrenn/proto/gen/hostagent/v1"
)

// consoleLook is the pause between two looks at a console that is followed. A
// machine says nothing when it prints: its console is memory that it writes to.
const consoleLook = 300 * time.Millisecond

var errConsoleRestart = wrenn.Errorf(wrenn.Unavailable, "the host's agent restarts: follow the console again in a moment")

// ReadConsole needs no running sandbox, and is no use of one.
func (s *server) ReadConsole(ctx context.Context, req *pb.ReadConsoleRequest, stream *connect.ServerStream[pb.ReadConsoleResponse]) error {
	id, err := wrenn.ParseSandboxID(req.GetSandboxId())
	if err != nil {
		return err
	}
	text, more, err := s.cfg.Manager.Console(id)
	if err != nil {
		return err
	}
	if err := sendConsole(stream, text); err != nil {
		return err
	}
	tick := time.NewTicker(consoleLook)
	defer tick.Stop()
	for req.GetFollow() && more {
		select {
		case <-tick.C:
		case <-s.closing:
			return errConsoleRestart
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var now string
		now, more, err = s.cfg.Manager.Console(id)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			return nil // it was destroyed
		}
		if err != nil {
			return err
		}
		if fresh := after(text, now); fresh != "" {
			if err := sendConsole(stream, fresh); err != nil {
				return err
			}
		}
		text = now
	}
	return nil
}

// sendConsole sends at least one message, which may be empty.
func sendConsole(stream *connect.ServerStream[pb.ReadConsoleResponse], text string) error {
	for first := true; first || text != ""; first = false {
		n := min(len(text), copyBuffer)
		if err := stream.Send(&pb.ReadConsoleResponse{Chunk: []byte(text[:n])}); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// after is what came to the end of a console since before, while its beginning
// may have been dropped: now without the longest end of before that it begins
// with. The guest chose both, so the time is linear: Knuth, Morris, Pratt.
func after(before, now string) string {
	if rest, ok := strings.CutPrefix(now, before); ok {
		return rest
	}
	fallback := borders(now)
	matched := 0 // of now, at the end of what was read of before
	for i := range len(before) {
		for matched > 0 && (matched == len(now) || before[i] != now[matched]) {
			matched = fallback[matched-1]
		}
		if len(now) > 0 && before[i] == now[matched] {
			matched++
		}
	}
	return now[matched:]
}

// borders says for each prefix of text how long the longest proper prefix is
// that it ends with.
func borders(text string) []int {
	out := slices.Repeat([]int{0}, len(text))
	for i := 1; i < len(text); i++ {
		n := out[i-1]
		for n > 0 && text[i] != text[n] {
			n = out[n-1]
		}
		if text[i] == text[n] {
			n++
		}
		out[i] = n
	}
	return out
}
