package hosttest

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// ReadConsole says which sandbox it is of. Who follows it waits for the end of
// the call: nothing more comes.
func (a *Agent) ReadConsole(ctx context.Context, req *hostagentv1.ReadConsoleRequest, s *connect.ServerStream[hostagentv1.ReadConsoleResponse]) error {
	return a.stream(ctx, "ReadConsole", req.GetSandboxId(), func() error {
		if err := s.Send(&hostagentv1.ReadConsoleResponse{Chunk: fmt.Appendf(nil, "console of %s\r\n", req.GetSandboxId())}); err != nil {
			return err
		}
		if req.GetFollow() {
			<-ctx.Done()
		}
		return ctx.Err()
	})
}
