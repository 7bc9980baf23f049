package service

import (
	"context"
	"io"
	"strings"

	"wrenn"
)

// Logs reads what a sandbox's console said, and with follow goes on with what
// comes until it ends. It may have ended already; looking is no use of it. The
// caller closes it. NotFound when nothing is kept of it.
func (s *Service) Logs(ctx context.Context, c Caller, id wrenn.SandboxID, follow bool) (io.ReadCloser, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	if sb.Host == "" { // it said nothing yet
		return io.NopCloser(strings.NewReader("")), nil
	}
	host, err := s.fleet.host(sb.Host)
	if err != nil {
		return nil, err
	}
	return host.Console(ctx, id, follow)
}
