package testkit

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
)

// recorder is a test that takes failures down instead of failing.
type recorder struct {
	testing.TB
	failures []string
}

// stopped is what ends the function of a recorder that failed fatally.
type stopped struct{}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatal(args ...any) {
	r.Errorf("fatal: %s", fmt.Sprint(args...))
	panic(stopped{})
}

func (r *recorder) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

// record returns how f fails its test; "" when it does not.
func record(f func(*recorder)) string {
	r := new(recorder)
	func() {
		defer func() {
			if got := recover(); got != nil && got != any(stopped{}) {
				panic(got)
			}
		}()
		f(r)
	}()
	return strings.Join(r.failures, "; ")
}

func TestChecks(t *testing.T) {
	plain := errors.New("plain")
	missing := fmt.Errorf("look: %w", wrenn.Errorf(wrenn.NotFound, "no such thing"))
	rpc := connect.NewError(connect.CodeNotFound, errors.New("no such thing"))
	for name, tt := range map[string]struct {
		check func(*recorder)
		want  string
	}{
		"must":                {func(r *recorder) { Must(r, nil) }, ""},
		"must fails":          {func(r *recorder) { Must(r, plain) }, "fatal: plain"},
		"code":                {func(r *recorder) { WantCode(r, missing, wrenn.NotFound, "no such", "thing") }, ""},
		"no error":            {func(r *recorder) { WantCode(r, nil, "") }, ""},
		"unexpected error":    {func(r *recorder) { WantCode(r, missing, "") }, `error = look: no such thing, code "not_found", want code ""`},
		"no error, but":       {func(r *recorder) { WantCode(r, nil, wrenn.Invalid) }, `error = <nil>, code "", want code "invalid_argument"`},
		"another code":        {func(r *recorder) { WantCode(r, missing, wrenn.Invalid) }, `error = look: no such thing, code "not_found", want code "invalid_argument"`},
		"another text":        {func(r *recorder) { WantCode(r, missing, wrenn.NotFound, "no such", "x") }, `error = look: no such thing, code "not_found", want code "not_found" and a message with ["no such" "x"]`},
		"RPC code":            {func(r *recorder) { WantRPCCode(r, rpc, connect.CodeNotFound, "thing") }, ""},
		"no RPC error":        {func(r *recorder) { WantRPCCode(r, nil, 0) }, ""},
		"no RPC error, but":   {func(r *recorder) { WantRPCCode(r, nil, connect.CodeUnknown) }, "error = <nil>, code 0, want code 2"},
		"not an RPC's error":  {func(r *recorder) { WantRPCCode(r, plain, connect.CodeNotFound) }, "error = plain, code 2, want code 5"},
		"another text by RPC": {func(r *recorder) { WantRPCCode(r, rpc, connect.CodeNotFound, "x") }, `error = not_found: no such thing, code 5, want code 5 and a message with ["x"]`},
	} {
		if got := record(tt.check); got != tt.want {
			t.Errorf("%s: failures %q, want %q", name, got, tt.want)
		}
	}
}

func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := time.Now().Add(time.Minute)
		if got := record(func(r *recorder) { WaitUntil(r, "it is time", func() bool { return time.Now().After(ready) }) }); got != "" {
			t.Errorf("WaitUntil: %s", got)
		}
		if got := record(func(r *recorder) { WaitUntil(r, "pigs fly", func() bool { return false }) }); got != "fatal: timed out waiting until pigs fly" {
			t.Errorf("WaitUntil: %q", got)
		}
		failures := 3
		check := func() error {
			if failures--; failures >= 0 {
				return fmt.Errorf("failure %d", failures)
			}
			return nil
		}
		if got := record(func(r *recorder) {
			if took := WaitNoError(r, "it works", check); took != 3*interval {
				t.Errorf("WaitNoError() = %v", took)
			}
		}); got != "" {
			t.Errorf("WaitNoError: %s", got)
		}
		never := func() error { return errors.New("no") }
		if got := record(func(r *recorder) { WaitNoError(r, "it works", never) }); got != "fatal: timed out waiting until it works: no" {
			t.Errorf("WaitNoError: %q", got)
		}
	})
}
