package rollback

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errInjected = errors.New("injected")

// recorder makes steps that record what is done and undone.
type recorder struct{ got []string }

func (r *recorder) step(name string, fails error) Step {
	record := func(what string, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			r.got = append(r.got, what)
			return errors.Join(err, context.Cause(ctx))
		}
	}
	return Step{Name: name, Do: record(name, fails), Undo: record("undo "+name, nil)}
}

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(r.got, want) {
		t.Errorf("done: %q, want %q", r.got, want)
	}
}

func TestRunnerRunsAllStepsAndUndoesNone(t *testing.T) {
	var r recorder
	err := Runner{}.Run(t.Context(), r.step("a", nil), Step{Name: "no undo", Do: func(context.Context) error { return nil }}, r.step("b", nil))
	if err != nil {
		t.Error(err)
	}
	r.want(t, "a", "b")
}

func TestRunnerUndoesInReverseWhenAStepFails(t *testing.T) {
	var r recorder
	err := Runner{}.Run(t.Context(), r.step("a", nil), r.step("b", errInjected), r.step("c", nil))
	if !errors.Is(err, errInjected) || err.Error() != "b: injected" {
		t.Errorf("Run() = %v", err)
	}
	r.want(t, "a", "b", "undo b", "undo a")
}

func TestRunnerJoinsTheErrorsOfUndo(t *testing.T) {
	stuck := errors.New("stuck")
	err := Runner{}.Run(t.Context(), Step{
		Name: "a",
		Do:   func(context.Context) error { return errInjected },
		Undo: func(context.Context) error { return stuck },
	})
	if !errors.Is(err, errInjected) || !errors.Is(err, stuck) {
		t.Errorf("Run() = %v", err)
	}
}

func TestRunnerStopsBetweenStepsWhenCtxEnds(t *testing.T) {
	var r recorder
	ctx, cancel := context.WithCancelCause(t.Context())
	hook := func(string) error { cancel(errInjected); return nil }
	err := Runner{Hook: hook}.Run(ctx, r.step("a", nil), r.step("b", nil))
	if !errors.Is(err, errInjected) || !strings.HasPrefix(err.Error(), "b: ") {
		t.Errorf("Run() = %v", err)
	}
	r.want(t, "a", "undo a")
}

func TestHookMakesItsStepFail(t *testing.T) {
	var r recorder
	hook := func(step string) error {
		if step == "b" {
			return errInjected
		}
		return nil
	}
	err := Runner{Hook: hook}.Run(t.Context(), r.step("a", nil), r.step("b", nil), r.step("c", nil))
	if err == nil || err.Error() != "b: injected" {
		t.Errorf("Run() = %v", err)
	}
	r.want(t, "a", "b", "undo b", "undo a")
}

// A hook that never returns is a crash: nothing is undone.
func TestHookThatNeverReturnsIsACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		restart := make(chan struct{})
		var run Runner
		run.Hook = func(step string) error {
			if step == "b" {
				<-restart
			}
			return nil
		}
		go func() { _ = run.Run(t.Context(), r.step("a", nil), r.step("b", nil), r.step("c", nil)) }()
		synctest.Wait()
		r.want(t, "a", "b")
		close(restart)
	})
}

func TestTraceGetsEachStepThatSucceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := map[string]time.Duration{}
		run := Runner{Trace: func(_ context.Context, step string, took time.Duration) { got[step] = took }}
		err := run.Run(t.Context(),
			Step{Name: "slow", Do: func(context.Context) error { time.Sleep(time.Second); return nil }},
			Step{Name: "bad", Do: func(context.Context) error { return errInjected }})
		if !errors.Is(err, errInjected) || len(got) != 1 || got["slow"] != time.Second {
			t.Errorf("Run() = %v, trace %v", err, got)
		}
	})
}

func TestNilHookDoesNothing(t *testing.T) {
	var hook Hook
	if err := hook.At("a"); err != nil {
		t.Error(err)
	}
}
