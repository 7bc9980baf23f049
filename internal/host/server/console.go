package server

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// consoleLook is the pause between two reads of a console that is followed. No
// event announces output: the console is memory that the machine writes to.
const consoleLook = 300 * time.Millisecond

var errConsoleRestart = wrenn.Errorf(wrenn.Unavailable, "the host's agent restarts: follow the console again in a moment")

// ReadConsole works for a sandbox in any status, and does not count as a use.
func (s *server) ReadConsole(ctx context.Context, req *pb.ReadConsoleRequest, stream *connect.ServerStream[pb.ReadConsoleResponse]) error {
	id, err := wrenn.ParseSandboxID(req.GetSandboxId())
	if err != nil {
		return err
	}
	if _, err := s.get(ctx, id); err != nil && wrenn.CodeOf(err) != wrenn.NotFound { // one that is gone may have left a console
		return err
	}
	done, err := s.opened.add(id)
	if err != nil {
		return err
	}
	defer done()
	since := req.GetSince().AsTime() // 1970 when it is absent
	text, more, err := s.cfg.Manager.Console(id, since)
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
		now, more, err = s.cfg.Manager.Console(id, since)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			return nil // the sandbox was destroyed
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
		if err := stream.Send(&pb.ReadConsoleResponse{Chunk: []byte(text[:n]), Timed: first}); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// after returns the output that a console has got since before, although its
// beginning may have been dropped: now without the longest prefix that is a suffix
// of before. The guest chooses both, so the time is linear: Knuth, Morris, Pratt.
func after(before, now string) string {
	if rest, ok := strings.CutPrefix(now, before); ok {
		return rest
	}
	fallback := borders(now)
	matched := 0 // bytes of now, at the end of the part of before that was read
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

// borders returns for each prefix of text the length of the longest proper prefix
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
