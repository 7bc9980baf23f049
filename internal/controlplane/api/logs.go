package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
)

func (h *handlers) GetSandboxLogs(ctx context.Context, req oapi.GetSandboxLogsRequestObject) (oapi.GetSandboxLogsResponseObject, error) {
	ctx, end := context.WithCancelCause(ctx)
	stop := context.AfterFunc(h.s.stopping, func() { end(errLogsStopping) })
	query := wrenn.ConsoleQuery{Follow: value(req.Params.Follow), Since: value(req.Params.Since)}
	console, err := h.s.service.Logs(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), query)
	if err != nil {
		stop()
		end(nil)
		return nil, err
	}
	return &logs{console: console, done: func() {
		stop()
		end(nil)
		_ = console.Close() // it was only read from
	}}, nil
}

var errLogsStopping = errors.New("the server is stopping")

// logs is the answer with the output of a console.
type logs struct {
	console io.ReadCloser
	done    func()
}

// VisitGetSandboxLogsResponse sends each piece at once. An error breaks the
// connection, so that a part does not look like the whole.
func (l *logs) VisitGetSandboxLogsResponse(w http.ResponseWriter) error {
	defer l.done()
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("X-Content-Type-Options", "nosniff") // a guest wrote it: no browser may treat it as a page
	w.WriteHeader(http.StatusOK)
	rec := recorderOf(w)
	buffer := make([]byte, chunk)
	for {
		if err := rec.flush(); err != nil {
			return fmt.Errorf("send the console: %w", err)
		}
		n, err := l.console.Read(buffer)
		if _, err := w.Write(buffer[:n]); err != nil {
			return fmt.Errorf("send the console: %w", err)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the console: %w", err)
		}
	}
}
