package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

// TestTable holds the table in the document equal to the results.
func TestTable(t *testing.T) {
	t.Parallel()
	all, err := readResults("../matrix.json")
	testkit.Must(t, err)
	committed, err := os.ReadFile("../../../docs/e2b.md")
	testkit.Must(t, err)
	copied := filepath.Join(t.TempDir(), "e2b.md")
	testkit.Must(t, os.WriteFile(copied, committed, 0o600))
	testkit.Must(t, writeTable(copied, all))
	if written, err := os.ReadFile(copied); err != nil || string(written) != string(committed) {
		t.Errorf("the table differs from e2e/sdk/matrix.json: run go run ./e2e/sdk/matrix -table, %v", err)
	}
	known := map[string]bool{}
	for _, r := range runs() {
		known[r.String()] = true
	}
	for name := range all {
		if !known[name] {
			t.Errorf("there is no run %q any more", name)
		}
	}
}

func TestReadOutcomes(t *testing.T) {
	t.Parallel()
	got, err := readOutcomes(strings.NewReader(`{"method":"files.read","outcome":"fail","error":"why","seconds":1}` + "\n"))
	if err != nil || len(got) != 1 || got[0] != (outcome{Method: "files.read", Outcome: "fail", Error: "why"}) {
		t.Errorf("readOutcomes() = %+v, %v", got, err)
	}
	if _, err := readOutcomes(strings.NewReader("Traceback\n")); err == nil {
		t.Error("what is no outcome is taken for one")
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	r := run{"python", "2.63.0", byURL}
	for words, want := range map[string]bool{"": true, "python": true, "python 2.63.0": true, "domain": false, "javascript": false} {
		if r.matches(strings.Fields(words)) != want {
			t.Errorf("%q selects %s: %v", words, r, !want)
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	old := []outcome{{Method: "a", Outcome: "pass"}, {Method: "b", Outcome: "fail"}}
	got := merge(old, []outcome{{Method: "b", Outcome: "pass"}, {Method: "c", Outcome: "absent"}})
	want := []outcome{{Method: "a", Outcome: "pass"}, {Method: "b", Outcome: "pass"}, {Method: "c", Outcome: "absent"}}
	if !slices.Equal(got, want) {
		t.Errorf("merge() = %v, want %v", got, want)
	}
	if old[1].Outcome != "fail" {
		t.Error("merge changes what it was given")
	}
}
