package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wrenn"
	"wrenn/internal/durable"
)

// journalFormat changes when an older agent could not read what a newer wrote.
const journalFormat = 2

// journal is what is known of one sandbox on this host: whoever finds it knows
// what to look for. It changes by Sandbox.commit alone, and Sandbox.decide
// if that cannot; what it points to never changes.
//
// What it says is what is: a running sandbox is its Body, a paused one its
// Snapshot, and a Spare is to be removed, whoever made it and whatever for.
type journal struct {
	Format  int             `json:"format"`
	ID      wrenn.SandboxID `json:"id"`
	Created time.Time       `json:"created"`
	Step    step            `json:"step"`

	// Generation is that of the newest body; no other had or will have it.
	Generation uint64    `json:"generation"`
	Body       *bodyNote `json:"body,omitempty"`
	Spare      *bodyNote `json:"spare,omitempty"`
	Snapshot   string    `json:"snapshot,omitempty"` // of a paused one
	// Frozen says that the guest's processes may stand still although the sandbox runs.
	Frozen bool `json:"frozen,omitempty"`

	Checkpoints []Checkpoint `json:"checkpoints,omitempty"`
	Head        string       `json:"head,omitempty"` // the checkpoint that the sandbox goes on from

	Template   string          `json:"template,omitempty"`
	Shape      Shape           `json:"shape"`
	Timeout    time.Duration   `json:"timeout,omitempty"` // ns
	OnTimeout  Ending          `json:"on_timeout,omitempty"`
	AutoResume bool            `json:"auto_resume,omitempty"`
	Parent     wrenn.SandboxID `json:"parent,omitempty"`  // of a fork
	Verdict    *Verdict        `json:"verdict,omitempty"` // why it ends or has ended

	path string // not saved
}

// step is where the sandbox is.
type step string

const (
	stepMaking  step = "making"
	stepRunning step = "running"
	stepPaused  step = "paused"
	stepDestroy step = "destroy"
	stepEnding  step = "ending" // by itself: what it had is being given back
	stepEnded   step = "ended"  // only the journal is left, until Destroy
)

const journalName = "sandbox.json"

// snapshots are those that the sandbox needs.
func (j *journal) snapshots() (ids []string) {
	if j.Snapshot != "" {
		ids = append(ids, j.Snapshot)
	}
	for _, b := range j.bodies() {
		if b.Origin != "" {
			ids = append(ids, b.Origin)
		}
	}
	for _, c := range j.Checkpoints {
		ids = append(ids, c.ID)
	}
	return ids
}

// isToGo says that the sandbox is to be removed with all that it has.
func (j *journal) isToGo() bool {
	return j.Step == stepDestroy || j.Step == stepMaking || j.Step == "" || j.Template == buildTemplate
}

// isEnding says that the sandbox ends by itself, and keeps its name.
func (j *journal) isEnding() bool { return j.Step == stepEnding && j.Verdict != nil }

// commit changes the journal, on the disk and here. After an error neither has
// changed: a write that failed at its very end may have been done, so the disk
// is asked.
func (s *Sandbox) commit(what string, change func(*journal)) error {
	return s.commitBy(durable.WriteFile, what, change)
}

// giveBack is a commit by which space is given back: it works on a full disk.
func (s *Sandbox) giveBack(what string, change func(*journal)) error {
	return s.commitBy(s.m.reserve.WriteFile, what, change)
}

func (s *Sandbox) commitBy(write durable.WriteFunc, what string, change func(*journal)) error {
	s.crash(what + " to be noted")
	next := *s.journal
	change(&next)
	s.need(append(s.journal.snapshots(), next.snapshots()...))
	err := next.save(write)
	if err != nil && next.isSaved() {
		err = nil
	}
	if err == nil {
		*s.journal = next
	}
	s.need(s.journal.snapshots())
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	s.crash(what + " noted")
	return nil
}

func (j *journal) encode() ([]byte, error) {
	data, err := json.MarshalIndent(j, "", "  ")
	return append(data, '\n'), err
}

func (j *journal) save(write durable.WriteFunc) error {
	data, err := j.encode()
	if err != nil {
		return err
	}
	return write(j.path, data, 0o600)
}

func (j *journal) isSaved() bool {
	want, err := j.encode()
	if err != nil {
		return false
	}
	got, err := os.ReadFile(j.path)
	return err == nil && bytes.Equal(want, got)
}

// readJournal reads the journal in the sandbox directory dir. One that was
// never finished reads as an empty journal of the directory's name.
func readJournal(dir string) (*journal, error) {
	id, err := wrenn.ParseSandboxID(filepath.Base(dir))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, journalName)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return &journal{Format: journalFormat, ID: id, path: path}, nil
	}
	if err != nil {
		return nil, err
	}
	j := &journal{path: path}
	if err := json.Unmarshal(data, j); err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	if j.Format != journalFormat || j.ID != id {
		return nil, fmt.Errorf("journal %s: format %d of sandbox %q cannot be read by this version", path, j.Format, j.ID)
	}
	return j, nil
}

// leftover is a sandbox directory that an earlier agent left.
type leftover struct {
	name    string
	journal *journal // nil when err is set
	err     error
}

// readJournals reads those of all sandboxes. What a sandbox's says to be the
// sandbox's is not the stock's as well: an agent died in the middle of a handover.
func (m *Manager) readJournals() ([]leftover, error) {
	entries, err := os.ReadDir(m.sandboxes())
	if err != nil {
		return nil, err
	}
	all := make([]leftover, len(entries))
	owned := map[string]bool{} // slots, by their ids, which are never used again
	for i, e := range entries {
		all[i].name = e.Name()
		j, err := readJournal(filepath.Join(m.sandboxes(), e.Name()))
		if all[i].journal, all[i].err = j, err; err != nil || j.Template == stockTemplate {
			continue
		}
		for _, b := range j.bodies() {
			if b.Slot != nil {
				owned[b.Slot.ID] = true
			}
		}
	}
	for _, left := range all {
		if j := left.journal; j != nil && j.Template == stockTemplate && j.Spare != nil && j.Spare.Slot != nil && owned[j.Spare.Slot.ID] {
			j.Spare = nil
		}
	}
	return all, nil
}

// machineDirs are the directories of the machines that the journals name.
func machineDirs(all []leftover) map[string]bool {
	dirs := map[string]bool{}
	for _, left := range all {
		if left.journal == nil {
			continue
		}
		for _, b := range left.journal.bodies() {
			if b.Machine != nil {
				dirs[b.Machine.Dir] = true
			}
		}
	}
	return dirs
}

// bodies are what there is of Body and Spare.
func (j *journal) bodies() []*bodyNote {
	return slices.DeleteFunc([]*bodyNote{j.Body, j.Spare}, func(b *bodyNote) bool { return b == nil })
}
