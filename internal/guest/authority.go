package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"wrenn.dev/internal/guest/settings"
	"wrenn.dev/internal/guest/trust"
)

// javaLimit bounds the time that Java's keytool has: under emulation it takes a minute.
const javaLimit = 5 * time.Minute

// serveTrust has programs trust an authority of the host, which answers the sandbox's
// connections to hosts with header rules.
func (a *Agent) serveTrust(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Bundle string `json:"caBundle"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req); err != nil || req.Bundle == "" {
		answerError(w, http.StatusBadRequest, "trust: caBundle has certificates in PEM")
		return
	}
	if err := a.trust(&req.Bundle); err != nil {
		a.log.ErrorContext(r.Context(), "cannot trust an authority", slog.Any("err", err))
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("trust: %v", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// trust has programs trust the certificates; nil changes nothing.
func (a *Agent) trust(bundle *string) error {
	if bundle == nil {
		return nil
	}
	env, err := a.machine.Trust(*bundle)
	if err != nil {
		return fmt.Errorf("trust the authority of the host: %w", err)
	}
	a.settings.Update(func(v *settings.Values) { v.Trust = env })
	go func() { // it ends within javaLimit
		ctx, cancel := context.WithTimeout(context.Background(), javaLimit)
		defer cancel()
		if err := a.machine.TrustInJava(ctx); err != nil {
			a.log.WarnContext(ctx, "Java does not trust the authority of the host", slog.Any("err", err))
		}
	}()
	return nil
}

// Trust adds the certificates to those of the system.
func (Kernel) Trust(certificates string) (env map[string]string, err error) {
	return trust.Add("/", certificates)
}

// TrustInJava adds the certificates to those of each Java.
func (Kernel) TrustInJava(ctx context.Context) error { return trust.AddToJava(ctx) }
