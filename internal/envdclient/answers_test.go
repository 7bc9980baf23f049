package envdclient

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

// TestEveryAnswerOfAGuest has each of Connect's codes and each status of HTTP answered
// by a guest whose root has replaced the agent, with a deadline far away. Callers must
// learn nothing from it about their key, limits, states or when to try again.
func TestEveryAnswerOfAGuest(t *testing.T) {
	codes := map[connect.Code]wrenn.Code{}
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		codes[code] = wrenn.GuestFailed
	}
	codes[connect.CodeInvalidArgument], codes[connect.CodeOutOfRange], codes[connect.CodeUnauthenticated] = wrenn.Invalid, wrenn.Invalid, wrenn.Invalid
	codes[connect.CodeNotFound], codes[connect.CodePermissionDenied] = wrenn.NotFound, wrenn.PermissionDenied
	statuses := map[int]wrenn.Code{}
	for status := 300; status < 600; status++ {
		statuses[status] = wrenn.GuestFailed
	}
	statuses[400], statuses[401], statuses[403], statuses[404], statuses[507] = wrenn.Invalid, wrenn.Invalid, wrenn.PermissionDenied, wrenn.NotFound, wrenn.NoSpace

	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	var code connect.Code
	inStream := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		end, _ := json.Marshal(map[string]any{"error": map[string]string{"code": code.String(), "message": "mine"}})
		_, _ = w.Write(envelope(2, end)) // the client may have hung up
	})
	unary := newImpostor(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTeapot)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": code.String(), "message": "mine"}) // the same
	})
	for c := range codes {
		code = c
		_, start := inStream.Start(ctx, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "true"}})
		_, attach := inStream.Attach(ctx, wrenn.ExecAttach{PID: 1})
		for name, err := range map[string]error{"start": start, "attach": attach, "signal": unary.Signal(ctx, 1, wrenn.SIGTERM)} {
			if got := wrenn.CodeOf(err); got != codes[c] || !strings.HasSuffix(err.Error(), "mine") {
				t.Errorf("%s answered with %s is %s (%v), want %s", name, c, got, err, codes[c])
			}
		}
	}
	status := 0
	plain := newImpostor(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(status)
	})
	got, calls := map[int]wrenn.Code{}, map[int]wrenn.Code{}
	for s := range statuses {
		status = s
		_, err := plain.ReadFile(ctx, "", "/x")
		got[s] = wrenn.CodeOf(err)
		if write := wrenn.CodeOf(plain.WriteFile(ctx, "", "/x", strings.NewReader("x"))); write != got[s] {
			t.Errorf("status %d is %s for a read and %s for a write", s, got[s], write)
		}
		_, err = plain.Exec(ctx, wrenn.ExecCommand{Cmd: "true"})
		calls[s] = wrenn.CodeOf(err)
	}
	if diff := cmp.Diff(statuses, got); diff != "" {
		t.Errorf("statuses of files (-want +got):\n%s", diff)
	}
	for s, code := range calls { // an RPC's status alone is no answer of envd
		if code != wrenn.GuestFailed {
			t.Errorf("status %d of an RPC is %s", s, code)
		}
	}
}

// TestDeadlineOfTheGuest: only the end of a deadline that the caller has is believed.
func TestDeadlineOfTheGuest(t *testing.T) {
	c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = w.Write(envelope(2, []byte(`{"error":{"code":"deadline_exceeded","message":"the time was up"}}`))) // the client may have hung up
	})
	for name, tc := range map[string]struct {
		left time.Duration
		want wrenn.Code
	}{
		"far": {time.Hour, wrenn.GuestFailed}, "near": {time.Second, wrenn.DeadlineExceeded},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), tc.left)
		_, err := c.Start(ctx, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "true"}})
		cancel()
		if got := wrenn.CodeOf(err); got != tc.want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, tc.want)
		}
	}
}

// TestSilentGuest: a guest that breaks connections does not answer, and no text has
// its address.
func TestSilentGuest(t *testing.T) {
	c := newImpostor(t, func(w http.ResponseWriter, _ *http.Request) {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = conn.Close()
		}
	})
	_, exec := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"})
	_, read := c.ReadFile(t.Context(), "", "/x")
	for name, err := range map[string]error{"exec": exec, "read": read, "signal": c.Signal(t.Context(), 1, wrenn.SIGTERM)} {
		if wrenn.CodeOf(err) != wrenn.Unavailable {
			t.Errorf("%s: %s (%v)", name, wrenn.CodeOf(err), err)
		}
		shown, _ := errors.AsType[*wrenn.Error](err)
		if text := shown.Message; strings.Contains(text, "127.0.0.1") || strings.Contains(text, "EOF") {
			t.Errorf("%s tells %q", name, text)
		}
	}
}
