package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"wrenn.dev/internal/guest/identity"
	"wrenn.dev/internal/guest/settings"
)

// staleLimit is for how long a copy keeps its original's connections.
const staleLimit = time.Second

// initRequest is the body that the host sends after a start or a restore. A field
// that is absent or null changes nothing.
type initRequest struct {
	Env       *map[string]string `json:"envVars"`
	User      *string            `json:"defaultUser"`    // "" is the agent's own default, root in a guest
	Workdir   *string            `json:"defaultWorkdir"` // "" is the user's home
	Token     *string            `json:"accessToken"`    // "" allows all requests
	Timestamp *time.Time         `json:"timestamp"`      // the host's time
	Entropy   []byte             `json:"entropy"`        // fresh random bytes
	Identity  *identityRequest   `json:"identity"`       // of the sandbox
	Volumes   []volumeMount      `json:"volumeMounts"`   // mounted if they are not
	Bundle    *string            `json:"caBundle"`       // certificates that programs are to trust, in PEM
}

type volumeMount struct {
	Target string `json:"nfs_target"` // ADDRESS:/EXPORT
	Path   string `json:"path"`
}

type identityRequest struct {
	ID           string `json:"id"`
	StartCounter uint64 `json:"generation"`
	Hostname     string `json:"hostname"`
}

// identity returns the identity in the request; ok is false when it has none.
func (req *initRequest) identity() (id identity.Identity, ok bool) {
	if req.Identity == nil {
		return id, false
	}
	return identity.Identity(*req.Identity), true
}

// parseInit reads one request. It ignores unknown fields, which newer hosts may send.
func parseInit(r io.Reader) (*initRequest, error) {
	req := &initRequest{}
	text, err := io.ReadAll(r)
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return req, err // without a body nothing changes
	}
	if !utf8.Valid(text) { // encoding/json would change it silently
		return nil, errors.New("the body is not UTF-8 text")
	}
	if err := json.Unmarshal(text, req); err != nil {
		return nil, err
	}
	if id, ok := req.identity(); ok {
		return req, id.Check()
	}
	return req, nil
}

// serveInit does all that a start or a restore needs. It thaws the users'
// processes last, and only when all else succeeded: they must not see the time of the
// snapshot, nor use randomness and ids that other copies of it have, too.
func (a *Agent) serveInit(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	req, err := parseInit(http.MaxBytesReader(w, r.Body, maxInit))
	if err != nil {
		answerError(w, http.StatusBadRequest, fmt.Sprintf("init: %v", err))
		return
	}
	if req.User != nil && *req.User == "" {
		req.User = &a.user
	}
	// The settings first: the token must change even if the clock cannot be set.
	a.settings.Update(req.apply)
	err = errors.Join(a.follow(req.Timestamp, arrived), a.clock.AddEntropy(req.Entropy))
	if err == nil {
		err = a.become(r.Context(), req)
	}
	if err == nil {
		err = a.mount(req.Volumes)
	}
	if err == nil {
		err = a.trust(req.Bundle)
	}
	if err == nil {
		err = a.freezer.thaw(r.Context())
	}
	if err != nil {
		a.log.ErrorContext(r.Context(), "cannot initialize the guest", slog.Any("err", err))
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("init: %v", err))
		return
	}
	w.Header().Set("X-Envd-Version", Version)
	w.Header().Set("Server-Timing", "init;dur="+strconv.FormatInt(time.Since(arrived).Milliseconds(), 10))
	w.WriteHeader(http.StatusNoContent)
	a.daemon.begin()
}

// serveSettings answers what /init has set and a boot would lose, in the form of
// /init.
func (a *Agent) serveSettings(w http.ResponseWriter, _ *http.Request) {
	v := a.settings.Get()
	answerJSON(w, http.StatusOK, map[string]any{"envVars": v.Env, "defaultUser": v.User, "defaultWorkdir": v.Workdir})
}

// mount mounts volumes. A restored guest has them mounted.
func (a *Agent) mount(volumes []volumeMount) error {
	for _, v := range volumes {
		if err := a.machine.MountNFS(v.Target, v.Path); err != nil {
			return fmt.Errorf("mount volume at %s: %w", v.Path, err)
		}
	}
	return nil
}

func (req *initRequest) apply(v *settings.Values) {
	if req.Env != nil {
		v.Env = *req.Env
	}
	for field, value := range map[*string]*string{&v.User: req.User, &v.Workdir: req.Workdir, &v.Token: req.Token} {
		if value != nil {
			*field = *value
		}
	}
}

// follow sets the clock to the host's time, which was right when the request
// arrived; nil does nothing.
func (a *Agent) follow(host *time.Time, arrived time.Time) error {
	if host == nil {
		return nil
	}
	moved, err := a.clock.Follow(host.Add(time.Since(arrived)))
	if moved != 0 {
		// Not Info: each byte on an emulated console takes a restore up to a millisecond.
		a.log.Debug("clock set", slog.Duration("by", moved))
	}
	return err
}

// become gives the guest the identity in the request. A guest whose identity
// changed is a copy: the peers of its original's connections are gone, and would not
// even reset what is sent to them.
func (a *Agent) become(ctx context.Context, req *initRequest) error {
	id, ok := req.identity()
	if !ok {
		return nil
	}
	changed, err := a.identity.Become(id, time.Now())
	if changed {
		a.log.Debug("new identity", slog.String("id", id.ID), slog.Uint64("start_counter", id.StartCounter))
		a.conns.closeOthers(ctx, staleLimit)
	}
	return err
}
