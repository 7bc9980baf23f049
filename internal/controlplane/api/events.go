package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// events sends the team's sandboxes as they change, until the client leaves, the key or
// the session ends, or the server stops.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	defer context.AfterFunc(s.stopping, func() { end(errStopping) })()
	rec := recorderOf(w)
	err := s.service.WatchSandboxes(ctx, callerOf(ctx), func(changes service.Changes) error {
		if rec.status == 0 {
			beginEvents(w)
		}
		if err := sendEvent(w, changes); err != nil {
			return err
		}
		if err := rec.flush(); err != nil {
			return err
		}
		return s.checkCaller(r)
	})
	if rec.status == 0 {
		s.refuse(w, r, err)
		return
	}
	rec.err = err // in the log, at the level of an answer that was 200
}

// beginEvents begins an answer of server-sent events.
func beginEvents(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // proxies that would wait for more
	w.WriteHeader(http.StatusOK)
}

// checkCaller returns an error once the key or the session of a request has ended.
func (s *Server) checkCaller(r *http.Request) error {
	if secret := secretOf(r); secret != "" {
		_, err := s.service.Authenticate(r.Context(), secret)
		return err
	}
	cookie, proof, err := sessionOf(r)
	if err == nil {
		_, err = s.service.AuthenticateSession(r.Context(), cookie, proof)
	}
	return err
}

// sendEvent sends changes, or a comment if there are none.
func sendEvent(w http.ResponseWriter, changes service.Changes) error {
	if !changes.First && len(changes.Sandboxes) == 0 && len(changes.Dropped) == 0 {
		_, err := fmt.Fprint(w, ":\n\n")
		return err
	}
	data := struct { // SandboxChanges of the contract
		Sandboxes []oapi.Sandbox `json:"sandboxes"`
		Dropped   []string       `json:"dropped"`
	}{[]oapi.Sandbox{}, []string{}}
	for i := range changes.Sandboxes {
		data.Sandboxes = append(data.Sandboxes, sandbox(&changes.Sandboxes[i]))
	}
	for _, id := range changes.Dropped {
		data.Dropped = append(data.Dropped, string(id))
	}
	text, err := json.Marshal(data) // on one line
	if err != nil {
		return err
	}
	name := "change"
	if changes.First {
		name = "snapshot"
	}
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, text)
	return err
}
