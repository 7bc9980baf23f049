package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
)

func TestReadReturnsWhatWasCommitted(t *testing.T) {
	id := wrenn.NewSandboxID()
	dir := filepath.Join(t.TempDir(), string(id))
	testkit.Must(t, os.Mkdir(dir, 0o700))
	want := New(dir, id)
	testkit.Must(t, want.Commit(durable.WriteFile, func(j *Journal) {
		j.Created, j.Step, j.Starts = time.Now().UTC().Round(0), StepRunning, 3
		j.Instance = &Instance{Start: 3, Machine: &vm.Ref{Driver: "fake", ID: string(id), PID: 7}, Source: "base"}
		j.Checkpoints = []wrenn.Checkpoint{{ID: "c", Name: "a name"}}
	}))
	got, err := Read(dir)
	testkit.Must(t, err)
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Journal{})); diff != "" {
		t.Errorf("Read() (-want +got):\n%s", diff)
	}
}

// An error may come after the file was replaced: then the change counts.
func TestCommitThatFails(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		write durable.WriteFunc
		done  bool
	}{
		"before the write": {func(string, []byte, os.FileMode) error { return broken }, false},
		"after the write": {func(path string, data []byte, perm os.FileMode) error {
			return errors.Join(os.WriteFile(path, data, perm), broken)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), string(wrenn.NewSandboxID()))
			testkit.Must(t, os.Mkdir(dir, 0o700))
			j := New(dir, wrenn.SandboxID(filepath.Base(dir)))
			err := j.Commit(tc.write, func(j *Journal) { j.Step = StepMaking })
			if (err == nil) != tc.done || (j.Step == StepMaking) != tc.done {
				t.Errorf("Commit() = %v and the step is %q; want it done: %v", err, j.Step, tc.done)
			}
			read, err := Read(dir)
			testkit.Must(t, err)
			if read.Step != j.Step {
				t.Errorf("the file says %q and the memory %q", read.Step, j.Step)
			}
		})
	}
}

func TestReadOfFilesThatAreNoJournal(t *testing.T) {
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
			testkit.Must(t, os.Mkdir(dir, 0o700))
			if tc.text != "" {
				testkit.Must(t, os.WriteFile(filepath.Join(dir, Name), []byte(tc.text), 0o600))
			}
			j, err := Read(dir)
			switch {
			case tc.err == "" && (err != nil || j.ID != id || j.Step != ""):
				t.Errorf("Read() = %+v, %v; want an empty journal of %s", j, err, id)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("Read() = %v, want an error with %q", err, tc.err)
			}
		})
	}
}

// format2 and format3 are the sandboxes directory of one agent, as a version that
// wrote format 2 left it, and as format 3 has it. None of these files may ever
// become unreadable, nor those of format 3 change when they are written again.
const (
	format2 = "testdata/format2"
	format3 = "testdata/format3"
)

func TestFilesOfEarlierVersions(t *testing.T) {
	for _, dir := range []string{format2, format3} {
		all, err := ReadAll(dir)
		testkit.Must(t, err)
		got := map[string]Step{}
		for _, left := range all {
			testkit.Must(t, left.Err)
			got[left.Name] = left.Journal.Step
			want, err := os.ReadFile(filepath.Join(format3, left.Name, Name))
			testkit.Must(t, err)
			data, err := left.Journal.encode()
			testkit.Must(t, err)
			if diff := cmp.Diff(string(want), string(data)); diff != "" {
				t.Errorf("%s/%s is not written as format 3 has it (-want +got):\n%s", dir, left.Name, diff)
			}
		}
		want := map[string]Step{
			"i0running000000000000": StepRunning, "i0frozen0000000000000": StepRunning, "i0paused0000000000000": StepPaused,
			"i0ended00000000000000": StepEnded, "i0ending0000000000000": StepEnding, "i0destroy000000000000": StepDestroy, pooled: StepMaking,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: steps (-want +got):\n%s", dir, diff)
		}
	}
}

// pooled is the machine of the warm pool in format2.
const pooled = "i7navupvkwbty6frkv1oa"

func TestWhatAnEarlierVersionSaidOfASandbox(t *testing.T) {
	j, err := Read(filepath.Join(format2, "i0running000000000000"))
	testkit.Must(t, err)
	if j.Instance == nil || j.Instance.Start != 2 || j.Instance.Source != "first" || j.Instance.Machine.ID != "i0running000000000000-2" || j.Other != nil {
		t.Errorf("instances: %+v, %+v", j.Instance, j.Other)
	}
	if j.Size != (wrenn.Size{VCPUs: 1, MemoryMiB: 64}) || j.Timeout != 5*time.Minute || j.OnTimeout != "pause" || !j.AutoResume || j.Template != "base" || j.Head != "first" {
		t.Errorf("journal: %+v", j)
	}
	if diff := cmp.Diff([]string{"first", "first", "second"}, j.Snapshots()); diff != "" {
		t.Errorf("Snapshots() (-want +got):\n%s", diff)
	}
	ended, err := Read(filepath.Join(format2, "i0ended00000000000000"))
	testkit.Must(t, err)
	if diff := cmp.Diff(&Verdict{Status: "failed", Reason: "its machine ended: killed"}, ended.Verdict); diff != "" {
		t.Errorf("verdict (-want +got):\n%s", diff)
	}
	paused, err := Read(filepath.Join(format2, "i0paused0000000000000"))
	testkit.Must(t, err)
	if paused.Snapshot == "" || paused.Parent != "i0running000000000000" || paused.Instance != nil {
		t.Errorf("journal: %+v", paused)
	}
	of, err := Read(filepath.Join(format2, pooled))
	testkit.Must(t, err)
	if of.Template != PoolTemplate || of.Other == nil || !of.IsUnwanted() {
		t.Errorf("journal: %+v", of)
	}
}

// An agent that dies while a sandbox claims a machine leaves it in two journals.
func TestAClaimedMachineIsTheSandboxs(t *testing.T) {
	dir := t.TempDir()
	testkit.Must(t, os.CopyFS(dir, os.DirFS(format2)))
	of, err := Read(filepath.Join(dir, pooled))
	testkit.Must(t, err)
	id := wrenn.NewSandboxID()
	testkit.Must(t, os.Mkdir(filepath.Join(dir, string(id)), 0o700))
	testkit.Must(t, New(filepath.Join(dir, string(id)), id).Commit(durable.WriteFile, func(j *Journal) { j.Step, j.Other = StepMaking, of.Other }))
	all, err := ReadAll(dir)
	testkit.Must(t, err)
	for _, left := range all {
		if left.Name == pooled && left.Journal.Other != nil || left.Name == string(id) && left.Journal.Other == nil {
			t.Errorf("%s: %+v", left.Name, left.Journal.Other)
		}
	}
}

func TestDeleteCheckpointKeepsTheTree(t *testing.T) {
	before := &Journal{Head: "b", Checkpoints: []wrenn.Checkpoint{{ID: "a"}, {ID: "b", Parent: "a"}, {ID: "c", Parent: "b"}}}
	after := before.With(func(j *Journal) { j.DeleteCheckpoint(j.Checkpoint("b")) })
	if diff := cmp.Diff([]wrenn.Checkpoint{{ID: "a"}, {ID: "c", Parent: "a"}}, after.Checkpoints); diff != "" || after.Head != "a" {
		t.Errorf("the head is %q, checkpoints (-want +got):\n%s", after.Head, diff)
	}
	if len(before.Checkpoints) != 3 || before.Checkpoints[2].Parent != "b" {
		t.Errorf("the journal before changed: %+v", before.Checkpoints)
	}
}
