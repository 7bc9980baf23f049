// Package journal is the file in which an agent records what one sandbox on its
// host is made of, so that the next agent finds everything that a killed one
// left. It knows the file and no machine.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/network/egress"
	"wrenn.dev/internal/vm"
)

// Format is the version of the file. It changes when an older agent could not
// read what a newer one wrote.
const Format = 3

// Name is the name of the file in the directory of a sandbox.
const Name = "sandbox.json"

// The templates of sandboxes that belong to no user. No user's template can
// have such a name.
const (
	// BuildTemplate marks a sandbox that a template is made from. The next agent
	// removes it.
	BuildTemplate = ".build"
	// PoolTemplate marks a machine of the warm pool, which stays in StepMaking. The
	// next agent removes it.
	PoolTemplate = ".pool"
)

// Journal is what is known of one sandbox. It changes by Commit; what its fields
// point to never changes.
//
// What it says is what counts: a running sandbox is its Instance, a paused one
// its Snapshot, and Other is to be removed, whatever it was made for.
type Journal struct {
	Format  int             `json:"format"`
	ID      wrenn.SandboxID `json:"id"`
	Created time.Time       `json:"created"`
	Step    Step            `json:"step"`

	// Starts counts the instances that the sandbox has had. It is the number of
	// the newest, and no other instance had or will have that number.
	Starts   uint64    `json:"starts"`
	Instance *Instance `json:"instance,omitempty"`
	// Other is an instance that the sandbox does not run in: pending while it is
	// made, retired while it is removed.
	Other    *Instance `json:"other,omitempty"`
	Snapshot string    `json:"snapshot,omitempty"` // of a paused sandbox
	// Held means that a paused sandbox is not resumed by its use.
	Held bool `json:"held,omitempty"`
	// Frozen means that the guest's processes may stand still although the sandbox runs.
	Frozen bool `json:"frozen,omitempty"`

	Checkpoints []wrenn.Checkpoint `json:"checkpoints,omitempty"`
	Head        wrenn.CheckpointID `json:"head,omitempty"` // the checkpoint that the sandbox continues from

	Template  string              `json:"template,omitempty"`
	Size      wrenn.Size          `json:"size"`
	DiskMiB   int                 `json:"disk_mib,omitempty"` // 0 of an older version
	Timeout   time.Duration       `json:"timeout,omitempty"`  // ns
	OnTimeout wrenn.OnTimeout     `json:"on_timeout,omitempty"`
	Absolute  bool                `json:"absolute,omitempty"`
	EndsAt    time.Time           `json:"ends_at,omitzero"` // of a running sandbox with an absolute timeout
	Network   wrenn.NetworkPolicy `json:"network,omitzero"`
	// Authority answers the connections to hosts with header rules. The guest trusts it,
	// also after a restore; forks have that of their parent.
	Authority  *egress.Authority `json:"authority,omitempty"`
	AutoResume bool              `json:"auto_resume,omitempty"`
	Parent     wrenn.SandboxID   `json:"parent,omitempty"` // of a fork
	// AccessToken is what the agent in the guest asks its callers for; "" is none.
	AccessToken string              `json:"access_token,omitempty"`
	Volumes     []wrenn.VolumeMount `json:"volumes,omitempty"`
	Team        wrenn.TeamID        `json:"team,omitempty"` // see wrenn.SandboxSpec
	// Stored is what is in the snapshot store, if it is that of Snapshot.
	Stored  *Stored  `json:"stored,omitempty"`
	Verdict *Verdict `json:"verdict,omitempty"` // why the sandbox ends or has ended
	// Epoch is that of its placement on this host; 0 is not known.
	Epoch wrenn.Epoch `json:"epoch,omitempty"`
	// CheckpointEvery is how often a checkpoint is made of it, in ns; 0 is never.
	CheckpointEvery time.Duration `json:"checkpoint_every,omitempty"`
	// SupersededBy is the epoch of a later placement, on another host; 0 is none.
	SupersededBy wrenn.Epoch `json:"superseded_by,omitempty"`

	path string
}

// Step is what the sandbox is, or where the agent is in changing that.
type Step string

// The steps. Without one there is no journal yet.
const (
	StepMaking  Step = "making"
	StepRunning Step = "running"
	StepPaused  Step = "paused"
	StepDestroy Step = "destroy"
	StepEnding  Step = "ending" // without a Destroy: what the sandbox had is being released
	StepEnded   Step = "ended"  // only the journal is left, until Destroy
)

// Instance is what must be known of an instance to find it again.
type Instance struct {
	Start   uint64           `json:"start"` // its number, from 1; see Journal.Starts
	Slot    *network.SlotRef `json:"slot,omitempty"`
	Machine *vm.Ref          `json:"machine,omitempty"`
	// Source is the snapshot that the machine was restored from. The machine's next
	// snapshot begins as a copy of its memory.
	Source string `json:"source,omitempty"`
	Guest  string `json:"guest,omitempty"` // the image that was booted, however long ago
}

// Stored is a snapshot in the snapshot store.
type Stored struct {
	Snapshot string `json:"snapshot"`
	wrenn.Stored
}

// Verdict is how a sandbox ended that was not destroyed.
type Verdict struct {
	Status string         `json:"status"` // stopped or failed
	Reason string         `json:"reason"`
	Cause  wrenn.EndCause `json:"cause,omitempty"` // "" of older versions
}

// New returns the journal of a new sandbox with the directory dir. It is not
// written before the first Commit.
func New(dir string, id wrenn.SandboxID) *Journal {
	return &Journal{Format: Format, ID: id, path: filepath.Join(dir, Name)}
}

// Read reads the journal in dir, the directory of a sandbox. If no journal was
// finished there it returns an empty one, without a Step, of the directory's name.
func Read(dir string) (*Journal, error) {
	id, err := wrenn.ParseSandboxID(filepath.Base(dir))
	if err != nil {
		return nil, err
	}
	empty := New(dir, id)
	data, err := os.ReadFile(empty.path)
	if errors.Is(err, os.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return nil, err
	}
	j := &Journal{path: empty.path}
	if data, err = upgrade(data); err == nil {
		err = json.Unmarshal(data, j)
	}
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", j.path, err)
	}
	if j.Format != Format || j.ID != id {
		return nil, fmt.Errorf("journal %s: format %d of sandbox %q cannot be read by this version", j.path, j.Format, j.ID)
	}
	return j, nil
}

// Portable returns the journal of a paused sandbox as another host can use it: without
// the checkpoints that are not stored and what else only this host has.
func (j *Journal) Portable() ([]byte, error) { return j.portable("") }

// PortableAt returns the journal of the sandbox as it was at a checkpoint, as that of a
// paused one that another host can use.
func (j *Journal) PortableAt(id wrenn.CheckpointID) ([]byte, error) {
	return j.With(func(j *Journal) { j.Step, j.Snapshot, j.Head, j.Verdict = StepPaused, string(id), id, nil }).portable(id)
}

// portable is Portable, with the checkpoint keep also if that is not stored yet.
func (j *Journal) portable(keep wrenn.CheckpointID) ([]byte, error) {
	return j.With(func(j *Journal) {
		j.Instance, j.Other, j.Stored, j.Frozen, j.Held = nil, nil, nil, false, false
		j.Epoch, j.SupersededBy = 0, 0
		for i, c := range slices.Backward(j.Checkpoints) {
			if c.Stored.Key == "" && c.ID != keep {
				j.DeleteCheckpoint(i)
			}
		}
	}).encode()
}

// ReadPortable returns the journal in data, which Portable has made, for the directory
// dir. It is not written before the first Commit. FailedPrecondition when it is not that
// of a paused sandbox with the name of the directory.
func ReadPortable(data []byte, dir string) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, Name)}
	data, err := upgrade(data)
	if err == nil {
		err = json.Unmarshal(data, j)
	}
	if err != nil || j.Format != Format || string(j.ID) != filepath.Base(dir) || j.Step != StepPaused || j.Snapshot == "" {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "what is stored of the sandbox was made by a version that this one does not know, or is damaged", Err: err}
	}
	return j, nil
}

// StoredKeys returns the keys in the snapshot store that the sandbox needs.
func (j *Journal) StoredKeys() (keys []string) {
	if j.Stored != nil && j.Stored.Snapshot == j.Snapshot {
		keys = append(keys, j.Stored.Key)
	}
	for _, c := range j.Checkpoints {
		if c.Stored.Key != "" {
			keys = append(keys, c.Stored.Key)
		}
	}
	return keys
}

// ReferencesOf returns the StoredKeys of what Portable has made. An error if it cannot be
// read.
func ReferencesOf(portable []byte) ([]string, error) {
	j := &Journal{}
	data, err := upgrade(portable)
	if err == nil {
		err = json.Unmarshal(data, j)
	}
	if err != nil || j.Format != Format {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "what is stored of a sandbox was made by a version that this one does not know, or is damaged", Err: err}
	}
	return j.StoredKeys(), nil
}

// Commit changes the journal by change, on the disk by write and then in memory.
// After an error neither has changed. A write that fails at its very end may have
// been done, so Commit reads the file then.
func (j *Journal) Commit(write durable.WriteFunc, change func(*Journal)) error {
	next := j.With(change)
	data, err := next.encode()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := write(j.path, data, 0o600); err != nil && !next.isWritten(data) {
		return fmt.Errorf("journal: %w", err)
	}
	*j = *next
	return nil
}

// With returns a changed copy of the journal.
func (j *Journal) With(change func(*Journal)) *Journal {
	next := *j
	change(&next)
	return &next
}

func (j *Journal) encode() ([]byte, error) {
	data, err := json.MarshalIndent(j, "", "  ")
	return append(data, '\n'), err
}

// isWritten reports whether the file holds data.
func (j *Journal) isWritten(data []byte) bool {
	got, err := os.ReadFile(j.path)
	return err == nil && bytes.Equal(data, got)
}

// Snapshots returns the ids of the snapshots that the sandbox needs.
func (j *Journal) Snapshots() (ids []string) {
	if j.Snapshot != "" {
		ids = append(ids, j.Snapshot)
	}
	for _, i := range j.Instances() {
		if i.Source != "" {
			ids = append(ids, i.Source)
		}
	}
	for _, c := range j.Checkpoints {
		ids = append(ids, string(c.ID)) // of its snapshot, too
	}
	return ids
}

// Instances returns those of Instance and Other that exist.
func (j *Journal) Instances() []*Instance {
	return slices.DeleteFunc([]*Instance{j.Instance, j.Other}, func(i *Instance) bool { return i == nil })
}

// NewestStored returns the newest checkpoint that is stored, nil for none. It is not changed.
func (j *Journal) NewestStored() *wrenn.Checkpoint {
	for i := range slices.Backward(j.Checkpoints) {
		if c := &j.Checkpoints[i]; c.Stored.Key != "" {
			return c
		}
	}
	return nil
}

// Checkpoint returns the index of the checkpoint, or -1.
func (j *Journal) Checkpoint(id wrenn.CheckpointID) int {
	return slices.IndexFunc(j.Checkpoints, func(c wrenn.Checkpoint) bool { return c.ID == id })
}

// DeleteCheckpoint deletes the checkpoint with the given index. Those that
// continued from it continue from its parent. It is for a Commit.
func (j *Journal) DeleteCheckpoint(i int) {
	gone := j.Checkpoints[i]
	j.Checkpoints = slices.Delete(slices.Clone(j.Checkpoints), i, i+1)
	for k := range j.Checkpoints {
		if j.Checkpoints[k].Parent == gone.ID {
			j.Checkpoints[k].Parent = gone.Parent
		}
	}
	if j.Head == gone.ID {
		j.Head = gone.Parent
	}
}

// IsUnwanted reports whether the sandbox is to be removed with all that it has.
func (j *Journal) IsUnwanted() bool {
	return j.Step == StepDestroy || j.Step == StepMaking || j.Step == "" || j.Template == BuildTemplate
}

// IsEnding reports whether the sandbox ends without a Destroy, and keeps its name.
func (j *Journal) IsEnding() bool { return j.Step == StepEnding && j.Verdict != nil }
