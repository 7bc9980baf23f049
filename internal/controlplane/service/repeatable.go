package service

import (
	"context"
	"errors"
	"log/slog"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

// Causes of errors of CreateSandboxOnce.
var (
	// ErrKeyReused is that the client has used its key for another request.
	ErrKeyReused = errors.New("the key was used for another request")
	// ErrCreateInProgress is that the first request with the key is not answered yet.
	ErrCreateInProgress = errors.New("the first request with the key is at work")
)

// RequestKey names a request that a client may repeat, for a day.
type RequestKey struct {
	Route, Key  string
	Fingerprint []byte // of what the request asks for
}

// CreateSandboxOnce is CreateSandbox for a request that the client may repeat: all
// requests with its key get the same sandbox, also when it has ended since. One that
// failed made nothing, and the next one tries again. It continues when ctx ends.
func (s *Sandboxes) CreateSandboxOnce(ctx context.Context, c Caller, key RequestKey, req CreateSandbox) (*wrenn.Sandbox, error) {
	ctx, cancel := detach(ctx, s.deadlines.Create)
	defer cancel()
	once := postgres.RepeatableCreate{Team: c.Team, Route: key.Route, Key: key.Key, Fingerprint: key.Fingerprint, Sandbox: wrenn.NewSandboxID()}
	progress, id, err := s.store.BeginCreate(ctx, once)
	switch {
	case err != nil:
		return nil, err
	case progress == postgres.CreateBegins:
		return s.createOnce(ctx, c, once, req)
	case progress == postgres.CreateDiffers:
		return nil, &wrenn.Error{Code: wrenn.AlreadyExists, Message: "this key was used for another request: use a new one", Err: ErrKeyReused}
	}
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	switch missing := wrenn.CodeOf(err) == wrenn.NotFound; {
	case err != nil && !missing:
		return nil, err
	case err == nil && (progress == postgres.CreateDone || hasStarted(sb)):
		return sb, nil
	case progress == postgres.CreateAbandoned && (missing || sb.State.Ended()):
		taken, err := s.store.TakeOverCreate(ctx, once, id)
		if err != nil {
			return nil, err
		}
		if taken {
			return s.createOnce(ctx, c, once, req)
		}
	}
	return nil, &wrenn.Error{Code: wrenn.AlreadyExists, Message: "the first request with this key is not answered yet: try again in a moment", Err: ErrCreateInProgress}
}

// hasStarted reports whether a create has succeeded.
func hasStarted(sb *wrenn.Sandbox) bool {
	switch sb.State {
	case wrenn.Pending, wrenn.Starting:
		return false
	}
	return !sb.StartedAt.IsZero()
}

// createOnce creates the sandbox of a create that this process has begun.
func (s *Sandboxes) createOnce(ctx context.Context, c Caller, once postgres.RepeatableCreate, req CreateSandbox) (*wrenn.Sandbox, error) {
	sb, err := s.createWithID(ctx, c, once.Sandbox, req)
	ctx, cancel := detach(ctx, 0)
	defer cancel()
	record := s.store.EndCreate
	if err != nil {
		record = s.store.DropCreate
	}
	if failed := record(ctx, once); failed != nil { // the state of the sandbox tells it as well
		s.log.LogAttrs(ctx, slog.LevelWarn, "cannot record the end of a create", slog.String("sandbox", string(once.Sandbox)), slog.Any("err", failed))
	}
	return sb, err
}
