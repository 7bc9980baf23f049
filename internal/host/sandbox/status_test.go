package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/testkit"
)

// TestTransitionsAreThoseOfTheDocs holds the code and the diagram equal.
func TestTransitionsAreThoseOfTheDocs(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "host-agent.md"))
	testkit.Must(t, err)
	var drawn []string
	for _, m := range regexp.MustCompile(`(?m)^ *([a-z]+ --> [a-z]+)`).FindAllStringSubmatch(string(page), -1) {
		drawn = append(drawn, m[1])
	}
	var coded []string
	for _, from := range statuses() {
		for _, to := range transitions[from] {
			coded = append(coded, fmt.Sprintf("%s --> %s", from, to))
		}
	}
	slices.Sort(coded)
	slices.Sort(drawn)
	if diff := cmp.Diff(coded, drawn); diff != "" {
		t.Errorf("the diagram of docs/host-agent.md (-code +page):\n%s", diff)
	}
}

func TestEachStatusHasItsTransitions(t *testing.T) {
	want := slices.Sorted(slices.Values(statuses()))
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(transitions))); diff != "" {
		t.Errorf("transitions (-statuses +transitions):\n%s", diff)
	}
	reached := map[Status]bool{StatusStarting: true}
	for _, next := range transitions {
		for _, s := range next {
			reached[s] = true
		}
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(reached))); diff != "" {
		t.Errorf("statuses that a sandbox can reach (-all +reached):\n%s", diff)
	}
}

// A mistake costs the one sandbox, never the agent with all the others.
func TestAStatusThatMayNotFollow(t *testing.T) {
	s, _ := newRunning(t)
	log := &strings.Builder{}
	s.host.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	err := (locked{s}).perform(t.Context(), operation{name: "resume", via: StatusResuming}, func(context.Context, *rollback.Stack) error {
		t.Error("the operation ran")
		return nil
	})
	if wrenn.CodeOf(err) != wrenn.Internal {
		t.Errorf("perform() = %v, want Internal", err)
	}
	if got := s.Info().Status; got != StatusRunning {
		t.Errorf("the status is %s after an operation that was refused", got)
	}
	s.state.set(StatusPaused, "")
	if info := s.Info(); info.Status != StatusFailed || info.Reason != reasonRefused {
		t.Errorf("it is %s: %s", info.Status, info.Reason)
	}
	s.state.set(StatusRunning, "")
	if got := s.Info().Status; got != StatusFailed {
		t.Errorf("the status is %s, want failed", got)
	}
	for _, want := range []string{"from=running to=resuming", "from=running to=paused", "from=failed to=running"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, log)
		}
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRefusalsOfWhatPassesAreUnavailable: what passes by itself in a moment is Unavailable, which
// clients repeat. A drain pauses a sandbox while its row still says that it runs.
func TestRefusalsOfWhatPassesAreUnavailable(t *testing.T) {
	for status, want := range map[Status]wrenn.Code{
		StatusPausing: wrenn.Unavailable, StatusResuming: wrenn.Unavailable, StatusRestoring: wrenn.Unavailable,
		StatusPaused: wrenn.FailedPrecondition, StatusStopping: wrenn.FailedPrecondition, StatusFailed: wrenn.FailedPrecondition,
	} {
		testkit.WantCode(t, Info{Status: status}.refusal(), want)
	}
}
