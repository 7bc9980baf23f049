package hosttest

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

// ReadConsole says which sandbox it is of, and to those who follow that it ended.
func (a *Agent) ReadConsole(ctx context.Context, req *hostagentv1.ReadConsoleRequest, s *connect.ServerStream[hostagentv1.ReadConsoleResponse]) error {
	return a.stream(ctx, "ReadConsole", req.GetSandboxId(), func() error {
		err := a.locked(func() error {
			_, err := a.running(req.GetSandboxId())
			return err
		})
		if err != nil {
			return err
		}
		if err := s.Send(&hostagentv1.ReadConsoleResponse{Chunk: fmt.Appendf(nil, "console of %s\r\n", req.GetSandboxId()), Timed: !a.NoConsoleTimes}); err != nil {
			return err
		}
		if req.GetFollow() {
			return s.Send(&hostagentv1.ReadConsoleResponse{Chunk: []byte("Power down\r\n")})
		}
		return nil
	})
}
