package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"wrenn/internal/guest/settings"
)

// initRequest is what the host says after a start or a restore. A field that
// is absent or null leaves things as they are, any other replaces them.
type initRequest struct {
	Env       *map[string]string `json:"envVars"`
	User      *string            `json:"defaultUser"`    // "" is the agent's own default, root in a guest
	Workdir   *string            `json:"defaultWorkdir"` // "" is the user's home
	Token     *string            `json:"accessToken"`    // "" admits everybody
	Timestamp *time.Time         `json:"timestamp"`      // the host's time
	Entropy   []byte             `json:"entropy"`        // fresh random bytes
}

// parseInit reads one request. Fields that it does not know are other hosts' business.
func parseInit(r io.Reader) (*initRequest, error) {
	req := &initRequest{}
	decoder := json.NewDecoder(r)
	switch err := decoder.Decode(req); {
	case errors.Is(err, io.EOF):
		return req, nil // no body: nothing changes
	case err != nil:
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return req, nil
}

func (a *Agent) serveInit(w http.ResponseWriter, r *http.Request) {
	req, err := parseInit(http.MaxBytesReader(w, r.Body, maxInit))
	if err != nil {
		answerError(w, http.StatusBadRequest, fmt.Sprintf("init: %v", err))
		return
	}
	if req.User != nil && *req.User == "" {
		req.User = &a.user
	}
	// The settings first: a host whose clock call is refused must still get its token in.
	a.settings.Update(req.apply)
	if err := a.adjust(req); err != nil {
		a.log.ErrorContext(r.Context(), "init", slog.Any("error", err))
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("init: %v", err))
		return
	}
	w.Header().Set("X-Envd-Version", Version)
	w.WriteHeader(http.StatusNoContent)
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

// adjust sets the clock and stirs the random pool, both even if one fails.
func (a *Agent) adjust(req *initRequest) error {
	entropyErr := a.clock.AddEntropy(req.Entropy)
	if req.Timestamp == nil {
		return entropyErr
	}
	moved, err := a.clock.Follow(*req.Timestamp)
	if moved != 0 {
		a.log.Info("clock set", slog.Duration("by", moved))
	}
	return errors.Join(entropyErr, err)
}
