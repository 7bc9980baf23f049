package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/extents"
)

// format changes when an older agent could not use the snapshots of a newer one.
const format = 2

// smallFile is the size up to which a file is hashed when it is published and
// whenever it is loaded: 1 MiB takes about a millisecond.
const smallFile = 1 << 20

// maxManifest bounds the size of a manifest.
const maxManifest = 1 << 20

// maxMetadata leaves room for the rest of the manifest.
const maxMetadata = maxManifest / 2

// Manifest describes a snapshot. Publish fills in Format and Files, its caller
// the rest.
type Manifest struct {
	Format    int       `json:"format"`
	ID        string    `json:"id"`
	Created   time.Time `json:"created"`
	Driver    string    `json:"driver"`          // the driver that wrote machine/
	Guest     string    `json:"guest,omitempty"` // the image that was booted, for people
	VCPUs     int       `json:"vcpus"`
	MemoryMiB int       `json:"memory_mib"`
	// A pinned snapshot stays without a reference, until Unpin.
	Pinned bool `json:"kept,omitempty"`
	// A transient snapshot is of use only to machines that run now: it need not
	// survive a power cut, and its large files are not hashed.
	Transient bool `json:"transient,omitempty"`
	// A snapshot of the disk alone has no machine: sandboxes boot from it.
	DiskOnly bool   `json:"disk_only,omitempty"`
	Files    []File `json:"files"`
	// Metadata is the caller's; at most maxMetadata bytes.
	Metadata []byte `json:"note,omitempty"`
	// Base is a snapshot whose files this one shares most with, if the host has it; it
	// stays as long as this one. "" is none.
	Base string `json:"base,omitempty"`
	// Owner owns the copy of a pinned snapshot elsewhere; "" wants none.
	Owner string `json:"owner,omitempty"`
	// Copy is where that copy is; zero while there is none. See SetCopy.
	Copy wrenn.Stored `json:"copy,omitzero"`
	// Fetched: this snapshot was made from that copy. See Store.Unused.
	Fetched bool `json:"fetched,omitempty"`
}

// Portable returns the manifest without what is true on one host alone.
func (m Manifest) Portable() Manifest {
	m.Base, m.Pinned, m.Transient, m.Owner, m.Copy, m.Fetched = "", false, false, "", wrenn.Stored{}, false
	return m
}

// File is a file that a snapshot must have.
type File struct {
	Path   string `json:"path"` // in the snapshot's directory, with slashes
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // of small files; see digest
}

// DataBytes returns how many bytes the files of a snapshot take on the disk,
// with shared blocks and without holes.
func (s *Snapshot) DataBytes() (n int64) {
	for _, f := range s.Files {
		n += blocksOf(s.Path(f))
	}
	return n
}

// Extents returns where the data of a snapshot is on the disk. The errors are NotFound
// when there is no such snapshot, and those of extents.Set.Add.
func (s *Store) Extents(ctx context.Context, id string, limit int) (*extents.Set, error) {
	if !s.lease(id) {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no snapshot %.80q", id)
	}
	defer s.release(id)
	man, err := readManifest(s.path(id))
	if err != nil {
		return nil, err
	}
	snap, set := &Snapshot{man, s.path(id)}, &extents.Set{}
	for _, f := range man.Files {
		if err := set.Add(ctx, snap.Path(f), limit); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// listFiles describes the files in a staged directory.
func listFiles(ctx context.Context, dir string) (files []File, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		file, err := describe(ctx, dir, path)
		files = append(files, file)
		return err
	})
	return files, err
}

func describe(ctx context.Context, dir, path string) (File, error) {
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return File{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	file := File{Path: filepath.ToSlash(rel), Size: info.Size()}
	if file.small() {
		file.SHA256, err = digest(ctx, f)
	}
	return file, err
}

func (f File) small() bool { return f.Size <= smallFile && f.Path != diskName }

func writeManifest(dir string, man Manifest, write durable.WriteFunc) error {
	man.Format = format
	data, err := json.MarshalIndent(man, "", "  ")
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, manifestName), append(data, '\n'), 0o600)
}

// readManifest reads the manifest in a snapshot's directory, and checks that it
// has the id that names the directory.
func readManifest(dir string) (man Manifest, err error) {
	id := filepath.Base(dir)
	data, err := readBounded(filepath.Join(dir, manifestName), maxManifest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return man, refuse(id, "its manifest %s is missing", manifestName)
	case err != nil:
		return man, fmt.Errorf("snapshot %s: %w", id, err)
	}
	if err := json.Unmarshal(data, &man); err != nil {
		return man, refuse(id, "its manifest %s is damaged", manifestName)
	}
	switch {
	case man.Format != format:
		return man, refuse(id, "it has format %d, and this version reads format %d", man.Format, format)
	case man.ID != id:
		return man, refuse(id, "its manifest is that of snapshot %.80q", man.ID)
	}
	return man, nil
}

// refuse returns the error for a snapshot that cannot be used.
func refuse(id, why string, args ...any) error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "snapshot %s cannot be used: %s", id, fmt.Sprintf(why, args...))
}
