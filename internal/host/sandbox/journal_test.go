package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn"
	"wrenn/internal/durable"
	"wrenn/internal/vm"
)

func TestJournalReadsWhatWasSaved(t *testing.T) {
	id := wrenn.NewSandboxID()
	dir := filepath.Join(t.TempDir(), string(id))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	want := &journal{
		Format: journalFormat, ID: id, Created: time.Now().UTC().Round(0), Step: stepRunning,
		Generation: 3, Body: &bodyNote{Generation: 3, Machine: &vm.Ref{Driver: "fake", ID: string(id), PID: 7}, Origin: "base"},
		Checkpoints: []Checkpoint{{ID: "c", Name: "a name"}}, path: filepath.Join(dir, journalName),
	}
	if err := want.save(durable.WriteFile); err != nil {
		t.Fatal(err)
	}
	got, err := readJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(journal{})); diff != "" {
		t.Errorf("readJournal() mismatch (-want +got):\n%s", diff)
	}
}

func TestReadJournal(t *testing.T) {
	id := wrenn.NewSandboxID()
	for _, tc := range []struct{ name, dir, text, err string }{
		{"none was written yet", string(id), "", ""},
		{"not a sandbox's directory", "x", "", "not a sandbox id"},
		{"cut short", string(id), `{"format":2,`, "unexpected end"},
		{"of another sandbox", string(id), `{"format":2,"id":"other"}`, "cannot be read"},
		{"of a newer agent", string(id), `{"format":99,"id":"` + string(id) + `"}`, "cannot be read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), tc.dir)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if tc.text != "" {
				if err := os.WriteFile(filepath.Join(dir, journalName), []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			j, err := readJournal(dir)
			switch {
			case tc.err == "" && (err != nil || j.ID != id):
				t.Errorf("readJournal() = %+v, %v; want an empty journal of %s", j, err, id)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("readJournal() = %v, want an error with %q", err, tc.err)
			}
		})
	}
}
