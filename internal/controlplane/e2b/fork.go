package e2b

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (s *Server) fork(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.Fork
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	d, err := s.seconds(req.Timeout, v2Timeout)
	if err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if sb.State == wrenn.Paused {
		return 0, nil, &failure{Status: http.StatusConflict, Message: "the sandbox is paused: connect to it first"}
	}
	copies, err := s.service.ForkSandbox(r.Context(), c, sb.ID, service.ForkSandbox{Count: *cmp.Or(req.Count, new(1))})
	if err != nil {
		return 0, nil, err
	}
	out := []oapi.ForkResult{}
	for i := range copies.Sandboxes {
		out = append(out, s.forkedOne(r.Context(), c, &copies.Sandboxes[i], d))
	}
	for _, f := range copies.Failed {
		out = append(out, forkError(f.Err))
	}
	return http.StatusCreated, out, nil
}

// forkedOne gives a copy its timeout.
func (s *Server) forkedOne(ctx context.Context, c service.Caller, sb *wrenn.Sandbox, timeout time.Duration) oapi.ForkResult {
	sb, err := s.service.SetTimeout(ctx, c, sb.ID, timeout)
	var out oapi.Sandbox
	if err == nil {
		out, err = s.sandboxOf(ctx, sb)
	}
	if err != nil {
		return forkError(err)
	}
	return oapi.ForkResult{Sandbox: &out}
}

func forkError(err error) oapi.ForkResult {
	f := failureOf(err)
	return oapi.ForkResult{Error: &oapi.Error{Code: f.Status, Message: f.Message}}
}
