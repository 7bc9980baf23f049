package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"wrenn"
	"wrenn/internal/snapshot"
	"wrenn/internal/snapshot/layer"
)

// format changes when an older agent could not fetch what a newer one has stored.
const format = 1

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
	Sandbox  string            `json:"sandbox"`
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
	Owner string   `json:"owner"` // Shared or that of the record
	ID    layer.ID `json:"id"`
	Bytes int64    `json:"bytes"` // of its object
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

func (r layerRef) key() string { return prefixOf(r.Owner) + "layers/" + r.ID.String() }

// keyOf returns the key of a record with that text.
func keyOf(owner, id string, text []byte) string {
	sum := sha256.Sum256(text)
	return prefixOf(owner) + "snapshots/" + id + "." + hex.EncodeToString(sum[:])
}

// CheckKey returns a FailedPrecondition error unless the key names a snapshot of the owner.
func CheckKey(owner, key string) error {
	rest, ok := strings.CutPrefix(key, prefixOf(owner)+"snapshots/")
	id, sum, _ := strings.Cut(rest, ".")
	if !ok || !ownerForm.MatchString(owner) || snapshot.CheckID(id) != nil || len(sum) != hex.EncodedLen(sha256.Size) {
		return wrenn.Errorf(wrenn.FailedPrecondition, "%.200q does not name a stored snapshot of the sandbox's team", key)
	}
	return nil
}

// parseRecord parses what is stored at key, and checks that it is what was stored.
func parseRecord(text []byte, owner, sandbox, key string) (rec record, err error) {
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&rec); err != nil {
		return rec, refuse("its record is damaged")
	}
	switch {
	case rec.Format > format:
		return rec, refuse("it has format %d, and this version reads format %d: use a newer version", rec.Format, format)
	case keyOf(owner, rec.Snapshot.ID, text) != key:
		return rec, refuse("its record is damaged, or that of another snapshot")
	case rec.Owner != owner:
		return rec, refuse("it belongs to another team")
	case rec.Sandbox != sandbox:
		return rec, refuse("it is of sandbox %.40q", rec.Sandbox)
	}
	for _, f := range rec.Files {
		if err := f.check(owner); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

func (f *file) check(owner string) error {
	switch {
	case len(f.Layers) > maxChain:
		return refuse("its file %.80q has %d layers, more than %d", f.Path, len(f.Layers), maxChain)
	case len(f.Layers) == 0 && int64(len(f.Content)) != f.Size:
		return refuse("its file %.80q has %d bytes and must have %d", f.Path, len(f.Content), f.Size)
	}
	for _, l := range f.Layers {
		if l.Owner != owner && l.Owner != Shared {
			return refuse("a layer of it belongs to another team")
		}
	}
	return nil
}

// refuse returns the error for a stored snapshot that cannot be used.
func refuse(why string, args ...any) error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "the stored snapshot cannot be used: %s", fmt.Sprintf(why, args...))
}
