package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/snapshot/layer"
)

// format changes when an older agent could not fetch what a newer one has stored.
const format = 2

// formatOf returns the format of what is stored in a round. Objects without a round are
// those of format 1, which older agents read.
func formatOf(round uint64) int {
	if round == 0 {
		return 1
	}
	return format
}

const (
	// maxRecord bounds a record in bytes.
	maxRecord = 64 << 20
	// maxChain bounds the layers of a file.
	maxChain = 8
	// inlineFile is the size up to which a file is in the record itself, in bytes.
	inlineFile = 1 << 20
)

// record is the object that names a stored snapshot. Its key has the SHA-256 of it, and
// it has the ids of all layers, so a key stands for the content of a whole snapshot.
type record struct {
	Format   int               `json:"format"`
	Owner    string            `json:"owner"`
	Sandbox  string            `json:"sandbox,omitempty"`  // whose snapshot it is
	Template string            `json:"template,omitempty"` // or: it is a template, whose layers are its own
	Round    uint64            `json:"round,omitempty"`    // in which it was stored; 0 for a template
	Snapshot snapshot.Manifest `json:"snapshot"`
	Files    []file            `json:"files"`
	// State is the caller's.
	State []byte `json:"state,omitempty"`
}

// file is a file of a snapshot: its content, or the layers from which it is made.
type file struct {
	Path    string     `json:"path"`
	Size    int64      `json:"size"`
	Mode    uint32     `json:"mode"`
	Content []byte     `json:"content,omitempty"`
	Layers  []layerRef `json:"layers,omitempty"` // the first one has no parent
}

// layerRef is a layer in the store.
type layerRef struct {
	Owner string `json:"owner"` // Shared or that of the record
	// Template has the layer to itself: it is removed with that. "" are layers that other
	// snapshots may refer to.
	Template string   `json:"template,omitempty"`
	Round    uint64   `json:"round,omitempty"` // in which it was stored; 0 of Shared and of a template
	ID       layer.ID `json:"id"`
	Bytes    int64    `json:"bytes"` // of its object
}

// Shared owns the layers of snapshots that belong to no team, as the base template.
const Shared = "shared"

// ownerForm is that of a team's id, or Shared.
var ownerForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func prefixOf(owner string) string {
	if owner == Shared {
		return Shared + "/"
	}
	return "teams/" + owner + "/"
}

func (r layerRef) key() string {
	if r.Template != "" {
		return templatePrefix(r.Owner, r.Template) + "layers/" + r.ID.String()
	}
	return prefixOf(r.Owner) + "layers/" + r.ID.String() + suffixOf(r.Round)
}

// isCollected reports whether the layer is one of those that Collect deletes.
func (r layerRef) isCollected() bool { return r.Owner != Shared && r.Template == "" }

// suffixOf ends the names of the objects of a round.
func suffixOf(round uint64) string {
	if round == 0 {
		return ""
	}
	return "." + strconv.FormatUint(round, 10)
}

// roundOf returns a name without its suffix, and the round. ok is false when the suffix
// is none that suffixOf makes.
func roundOf(name string) (rest string, round uint64, ok bool) {
	rest, suffix, found := strings.Cut(name, ".")
	if !found {
		return name, 0, true
	}
	round, err := strconv.ParseUint(suffix, 10, 64)
	return rest, round, err == nil && suffixOf(round) == "."+suffix
}

// isSame reports whether both have the same content, wherever it is.
func (r layerRef) isSame(other layerRef) bool { return r.Owner == other.Owner && r.ID == other.ID }

// subject is what a stored snapshot is of: a sandbox, or the template of that id.
type subject struct{ owner, sandbox, template string }

// templatePrefix begins the keys of all objects of a template.
func templatePrefix(owner, id string) string { return prefixOf(owner) + "templates/" + id + "/" }

// keyOf returns the key of a record with that text, of the snapshot id and the round.
func (of subject) keyOf(id string, round uint64, text []byte) string {
	sum := sha256.Sum256(text)
	name := hex.EncodeToString(sum[:])
	if of.template != "" {
		return templatePrefix(of.owner, of.template) + name
	}
	return prefixOf(of.owner) + "snapshots/" + id + "." + name + suffixOf(round)
}

// check returns a FailedPrecondition error unless the key names a snapshot of the subject.
func (of subject) check(key string) error {
	isRound := true
	var ok bool
	var id, sum string
	if of.template != "" {
		id = of.template
		sum, ok = strings.CutPrefix(key, templatePrefix(of.owner, id))
	} else {
		sum, ok = strings.CutPrefix(key, prefixOf(of.owner)+"snapshots/")
		id, sum, _ = strings.Cut(sum, ".")
		sum, _, isRound = roundOf(sum)
	}
	if !ok || !isRound || !isOwner(of.owner) || snapshot.CheckID(id) != nil || !sumForm.MatchString(sum) {
		return wrenn.Errorf(wrenn.FailedPrecondition, "%.200q does not name a stored snapshot of that team, or not this one", key)
	}
	return nil
}

var sumForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func isOwner(id string) bool { return ownerForm.MatchString(id) && id != Shared }

// roundOfKey returns the round of the record or layer at key. ok is false for a key of
// another form.
func roundOfKey(key string) (round uint64, ok bool) {
	_, name, found := strings.Cut(key, "/snapshots/")
	if found {
		_, name, found = strings.Cut(name, ".")
	} else {
		_, name, found = strings.Cut(key, "/layers/")
	}
	sum, round, ok := roundOf(name)
	return round, ok && found && sumForm.MatchString(sum)
}

// parseAnyRecord is parseRecord for a record of any snapshot of an owner.
func parseAnyRecord(text []byte, owner, key string) (record, error) {
	var of struct{ Sandbox, Template string }
	if err := json.Unmarshal(text, &of); err != nil {
		return record{}, refuse("its record is damaged")
	}
	return parseRecord(text, subject{owner: owner, sandbox: of.Sandbox, template: of.Template}, key)
}

// parseRecord parses what is stored at key, and checks that it is what was stored.
func parseRecord(text []byte, of subject, key string) (rec record, err error) {
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&rec); err != nil {
		return rec, refuse("its record is damaged")
	}
	switch {
	case rec.Format > format:
		return rec, refuse("it has format %d, and this version reads format %d: use a newer version", rec.Format, format)
	case of.keyOf(rec.Snapshot.ID, rec.Round, text) != key:
		return rec, refuse("its record is damaged, or that of another snapshot")
	case rec.Owner != of.owner:
		return rec, refuse("it belongs to another team")
	case rec.Sandbox != of.sandbox:
		return rec, refuse("it is of sandbox %.40q", rec.Sandbox)
	case rec.Template != of.template, of.template != "" && rec.Snapshot.ID != of.template:
		return rec, refuse("it is of template %.40q", rec.Template)
	}
	for _, f := range rec.Files {
		if err := f.check(of); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

func (f *file) check(of subject) error {
	switch {
	case len(f.Layers) > maxChain:
		return refuse("its file %.80q has %d layers, more than %d", f.Path, len(f.Layers), maxChain)
	case len(f.Layers) == 0 && int64(len(f.Content)) != f.Size:
		return refuse("its file %.80q has %d bytes and must have %d", f.Path, len(f.Content), f.Size)
	}
	for _, l := range f.Layers {
		switch {
		case l.Owner != of.owner && l.Owner != Shared:
			return refuse("a layer of it belongs to another team")
		case l.Template != "" && (l.Template != of.template || l.Owner != of.owner):
			return refuse("a layer of it belongs to another template")
		}
	}
	return nil
}

// refuse returns the error for a stored snapshot that cannot be used.
func refuse(why string, args ...any) error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "the stored snapshot cannot be used: %s", fmt.Sprintf(why, args...))
}
