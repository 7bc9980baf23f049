package sandbox

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn/internal/testkit"
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

func TestAStatusIsCheckedWhenItIsSet(t *testing.T) {
	s, _ := newRunning(t)
	defer func() {
		if text := fmt.Sprint(recover()); !strings.Contains(text, "from running to paused") {
			t.Errorf("set() of a status that may not follow: %s", text)
		}
		if got := s.Info().Status; got != StatusRunning {
			t.Errorf("the status is %s", got)
		}
	}()
	s.state.set(StatusPaused, "")
}
