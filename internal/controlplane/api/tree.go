package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func fileEntry(e wrenn.FileEntry) oapi.FileEntry {
	return oapi.FileEntry{
		Path: e.Path, Type: oapi.FileEntryType(e.Type), Size: e.Size, Mode: e.Mode, Owner: e.Owner, Group: e.Group, ModifiedAt: e.ModifiedAt.UTC(), Target: e.Target,
	}
}

func (h *handlers) GetFile(ctx context.Context, req oapi.GetFileRequestObject) (oapi.GetFileResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	e, err := h.s.service.StatFile(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), value(req.Params.User), req.Params.Path)
	if err != nil {
		return nil, err
	}
	return oapi.GetFile200JSONResponse{Body: fileEntry(e)}, nil
}

func (h *handlers) ListFiles(ctx context.Context, req oapi.ListFilesRequestObject) (oapi.ListFilesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p := req.Params
	page, next, err := h.s.service.ListFiles(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), service.ListFiles{
		User: value(p.User), Path: p.Path, Levels: value(p.Depth), Limit: value(p.Limit), Page: value(p.Page),
	})
	if err != nil {
		return nil, err
	}
	answer := oapi.ListFiles200JSONResponse{Body: make([]oapi.FileEntry, 0, len(page))} // none is [], not null
	for _, e := range page {
		answer.Body = append(answer.Body, fileEntry(e))
	}
	if next != "" {
		answer.Headers.XNextPage = &next
	}
	return answer, nil
}

func (h *handlers) CreateDirectory(ctx context.Context, req oapi.CreateDirectoryRequestObject) (oapi.CreateDirectoryResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	e, err := h.s.service.MakeDirectory(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), value(req.Params.User), req.Params.Path)
	if err != nil {
		return nil, err
	}
	return oapi.CreateDirectory200JSONResponse{Body: fileEntry(e)}, nil
}

func (h *handlers) MoveFile(ctx context.Context, req oapi.MoveFileRequestObject) (oapi.MoveFileResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	e, err := h.s.service.MoveFile(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), value(req.Body.User), req.Body.From, req.Body.To)
	if err != nil {
		return nil, err
	}
	return oapi.MoveFile200JSONResponse{Body: fileEntry(e)}, nil
}

func (h *handlers) DeleteFile(ctx context.Context, req oapi.DeleteFileRequestObject) (oapi.DeleteFileResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.RemoveFile(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), value(req.Params.User), req.Params.Path); err != nil {
		return nil, err
	}
	return oapi.DeleteFile204Response{}, nil
}

func (h *handlers) ListProcesses(ctx context.Context, req oapi.ListProcessesRequestObject) (oapi.ListProcessesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	list, err := h.s.service.Processes(ctx, callerOf(ctx), wrenn.SandboxID(req.ID))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListProcesses200JSONResponse{Body: make([]oapi.Process, 0, len(list))}
	for _, p := range list {
		answer.Body = append(answer.Body, oapi.Process{Pid: p.PID, Cmd: p.Cmd, Args: append([]string{}, p.Args...), Cwd: p.Cwd, Tag: p.Tag})
	}
	return answer, nil
}

func (h *handlers) SignalProcess(ctx context.Context, req oapi.SignalProcessRequestObject) (oapi.SignalProcessResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.SignalProcess(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), req.Pid, wrenn.Signal(req.Body.Signal)); err != nil {
		return nil, err
	}
	return oapi.SignalProcess204Response{}, nil
}

// fileChange is FileChange of the contract.
type fileChange struct {
	Path string `json:"path"`
	Type string `json:"type"`
}

// watchFiles sends the changes in a directory, until the client leaves, the watch, the
// key or the session ends, or the server stops.
func (s *Server) watchFiles(w http.ResponseWriter, r *http.Request) {
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	defer context.AfterFunc(s.stopping, func() { end(errStopping) })()
	query := r.URL.Query() // conform has checked what it has
	if !query.Has("path") {
		s.refuse(w, r, invalid("the query has no path"))
		return
	}
	watch, err := s.service.WatchFiles(ctx, callerOf(ctx), wrenn.SandboxID(chi.URLParam(r, "id")), query.Get("user"), query.Get("path"), query.Get("recursive") == "true")
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer watch.Close()
	beginEvents(w)
	out := &eventWriter{w: w, rec: recorderOf(w)}
	out.send("start", struct{}{})
	err = s.sendChanges(ctx, out, watch, func() error { return s.checkCaller(r) })
	if out.err == nil && r.Context().Err() == nil {
		out.send("end", watchEnd(ctx, err))
	}
	recorderOf(w).err = err // in the log, at the level of an answer that was 200
}

// sendChanges sends changes until the watch ends, and returns why.
func (s *Server) sendChanges(ctx context.Context, out *eventWriter, watch service.FileWatch, check func() error) error {
	type result struct {
		change wrenn.FileChange
		err    error
	}
	results := make(chan result) // without a buffer: a slow client slows the watch, which then says what it lost
	go func() {
		for {
			change, err := watch.Next()
			select {
			case results <- result{change, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	tick := time.NewTicker(s.times.comment)
	defer tick.Stop()
	for out.err == nil {
		select {
		case r := <-results:
			if r.err != nil {
				return r.err
			}
			out.send("change", fileChange{r.change.Path, string(r.change.Type)})
		case <-tick.C:
			out.comment()
			if err := check(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return out.err
}

// watchEnd is the data of the event end of a watch that ended with err.
func watchEnd(ctx context.Context, err error) any {
	if errors.Is(err, io.EOF) {
		err = wrenn.Errorf(wrenn.NotFound, "the directory was removed")
	}
	f := failureOf(ctx, err)
	return struct {
		Code    oapi.ErrorCode `json:"code"`
		Message string         `json:"message"`
	}{f.code, f.message}
}

// eventWriter sends server-sent events. After an error it sends no more.
type eventWriter struct {
	w   http.ResponseWriter
	rec *recorder
	err error
}

func (e *eventWriter) send(event string, data any) {
	text, err := json.Marshal(data) // on one line
	if err != nil {
		e.err = err
		return
	}
	e.write("event: %s\ndata: %s\n\n", event, text)
}

func (e *eventWriter) comment() { e.write(":\n\n") }

func (e *eventWriter) write(format string, args ...any) {
	if e.err != nil {
		return
	}
	if _, e.err = fmt.Fprintf(e.w, format, args...); e.err == nil {
		e.err = e.rec.flush()
	}
}
