package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wrenn"
	"wrenn/internal/durable"
	"wrenn/internal/network"
	"wrenn/internal/vm"
)

// journalFormat changes when an older agent could not read what a newer wrote.
const journalFormat = 1

// journal is what is known of one sandbox on this host, written before and
// after every step: whoever finds it knows what to look for.
type journal struct {
	Format  int              `json:"format"`
	ID      wrenn.SandboxID  `json:"id"`
	Created time.Time        `json:"created"`
	Step    step             `json:"step"`
	Slot    *network.SlotRef `json:"slot,omitempty"`
	Machine *vm.Ref          `json:"machine,omitempty"`

	Template string        `json:"template,omitempty"`
	Shape    Shape         `json:"shape"`
	Timeout  time.Duration `json:"timeout,omitempty"` // ns
	Paused   bool          `json:"paused,omitempty"`  // what is wanted; who adopts the machine sees to it
	Verdict  *Verdict      `json:"verdict,omitempty"` // why it ends or has ended

	path string // not saved
}

// step is the last one that was begun.
type step string

const (
	stepSlot    step = "slot"
	stepDisk    step = "disk"
	stepMachine step = "machine"
	stepReady   step = "ready"
	stepRunning step = "running"
	stepDestroy step = "destroy"
	stepEnding  step = "ending" // by itself: what it had is being given back
	stepEnded   step = "ended"  // only the journal is left, until Destroy
)

const journalName = "sandbox.json"

func (j *journal) begin(s step) error {
	j.Step = s
	return j.save()
}

func (j *journal) save() error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(j.path, append(data, '\n'), 0o600)
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
