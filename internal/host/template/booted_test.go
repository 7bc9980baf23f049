package template

import (
	"fmt"
	"slices"
	"testing"

	"wrenn.dev"
)

func TestBootedGuestsAreBounded(t *testing.T) {
	t.Parallel()
	b := &booted{}
	var gone []string
	use := func(name, team string) { gone = append(gone, b.touch(bootedName{name, wrenn.TeamID(team)})...) }
	for i := range maxBootedTeam {
		use(fmt.Sprint("a", i), "a")
	}
	use("a0", "a") // now the last
	use("a4", "a")
	if !slices.Equal(gone, []string{"a1"}) {
		t.Errorf("a team's fifth snapshot removes %q, want the one that was used least", gone)
	}
	gone = nil
	for i := range maxBooted {
		use(fmt.Sprint("b", i), fmt.Sprint("b", i))
	}
	if want := []string{"a2", "a3", "a0", "a4"}; !slices.Equal(gone, want) {
		t.Errorf("other teams' snapshots remove %q, want %q", gone, want)
	}
}
