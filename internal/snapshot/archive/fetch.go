package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/snapshot/layer"
	"wrenn.dev/internal/storage"
)

// Fetch makes the snapshot that is stored at key, unless the host has it, and leases it:
// it is not collected before release is called. The state is that of Upload. NotFound
// when the store does not have it; FailedPrecondition, which names the reason, when what
// is stored is not what was uploaded, or is of another owner or sandbox.
func (a *Archive) Fetch(ctx context.Context, owner, sandbox, key string) (_ *snapshot.Snapshot, state []byte, release func(), err error) {
	rec, err := a.record(ctx, subject{owner: owner, sandbox: sandbox}, key)
	if err != nil {
		return nil, nil, nil, err
	}
	if snap, release, err := a.Snapshots.Load(ctx, rec.Snapshot.ID); wrenn.CodeOf(err) != wrenn.NotFound {
		return snap, rec.State, release, err
	}
	f := &fetch{Archive: a, rec: rec}
	snap, release, err := f.run(ctx, rec.Snapshot.Portable())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("fetch snapshot %s: %w", rec.Snapshot.ID, err)
	}
	return snap, rec.State, release, nil
}

// record reads the record of a subject at key.
func (a *Archive) record(ctx context.Context, of subject, key string) (*record, error) {
	if err := of.check(key); err != nil {
		return nil, err
	}
	text, err := objects.ReadAll(ctx, a.Objects, key, maxRecord)
	if err != nil {
		return nil, err
	}
	rec, err := parseRecord(text, of, key)
	return &rec, err
}

// fetch is one call of Fetch or FetchTemplate.
type fetch struct {
	*Archive
	rec *record
}

// run makes the snapshot of the record, with the base that its layers have.
func (f *fetch) run(ctx context.Context, man snapshot.Manifest) (_ *snapshot.Snapshot, release func(), err error) {
	base, releaseBase, err := f.base(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer releaseBase()
	if base != nil {
		man.Base = base.snap.ID
	}
	return f.publish(ctx, man, func(staged *snapshot.Staged) error {
		for _, file := range f.rec.Files {
			if err := f.file(ctx, staged, file, base); err != nil {
				return fmt.Errorf("file %s: %w", file.Path, err)
			}
		}
		return nil
	})
}

// publish makes a snapshot whose files make writes.
func (f *fetch) publish(ctx context.Context, man snapshot.Manifest, write func(*snapshot.Staged) error) (_ *snapshot.Snapshot, release func(), err error) {
	staged, err := f.Snapshots.Stage()
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, staged.Discard(context.WithoutCancel(ctx))) }()
	if err := write(staged); err != nil {
		return nil, nil, err
	}
	snap, release, err := staged.Publish(ctx, man)
	if wrenn.CodeOf(err) == wrenn.AlreadyExists { // another fetch of the same was faster
		return f.Snapshots.Load(ctx, man.ID)
	}
	return snap, release, err
}

// base returns the host's snapshot with the first layers of the files, and leases it.
// It is made if necessary. It is nil if no file has a second layer.
func (f *fetch) base(ctx context.Context) (*baseFiles, func(), error) {
	first := map[string]layerRef{}
	for _, file := range f.rec.Files {
		if len(file.Layers) > 1 {
			first[file.Path] = file.Layers[0]
		}
	}
	if len(first) == 0 {
		return nil, func() {}, nil
	}
	if snap, release := f.find(ctx, first); snap != nil {
		return &baseFiles{snap, first}, release, nil
	}
	man := f.rec.Snapshot.Portable()
	man.ID, man.Metadata = baseID(first), nil
	snap, release, err := f.publish(ctx, man, func(staged *snapshot.Staged) error {
		for _, file := range f.rec.Files {
			if ref, ok := first[file.Path]; ok {
				file.Layers, file.Size = []layerRef{ref}, anySize
				if err := f.file(ctx, staged, file, nil); err != nil {
					return fmt.Errorf("file %s of the base: %w", file.Path, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if err := f.writeStored(snap.ID, storedOf(first)); err != nil {
		release()
		return nil, nil, err
	}
	return &baseFiles{snap, first}, release, nil
}

// baseID names the snapshot that is made of the first layers of files.
func baseID(first map[string]layerRef) string {
	var sum layer.ID
	for path, ref := range first { // in any order
		ref.Round = 0 // the content is the same in each
		one := sha256.Sum256([]byte(path + " " + ref.key()))
		for i := range sum {
			sum[i] ^= one[i]
		}
	}
	return "layers-" + hex.EncodeToString(sum[:16])
}

// find returns a snapshot of the host whose files are these layers, and leases it; nil
// if there is none.
func (f *fetch) find(ctx context.Context, first map[string]layerRef) (*snapshot.Snapshot, func()) {
	for _, id := range f.Snapshots.IDs() {
		known, err := f.readStored(id)
		if err != nil || !hasAll(known, first) {
			continue
		}
		if snap, release, err := f.Snapshots.Load(ctx, id); err == nil {
			return snap, release
		}
	}
	return nil, nil
}

func hasAll(known stored, first map[string]layerRef) bool {
	for path, ref := range first {
		if !known[ref.Owner][path].isSame(ref) {
			return false
		}
	}
	return true
}

// anySize is the size of a file of a base: a disk may have grown since then.
const anySize = -1

// file makes one file of a snapshot.
func (f *fetch) file(ctx context.Context, staged *snapshot.Staged, file file, base *baseFiles) error {
	path, err := staged.Path(file.Path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	mode := os.FileMode(file.Mode).Perm()
	if len(file.Layers) == 0 {
		return os.WriteFile(path, file.Content, mode)
	}
	layers, parent := file.Layers, layer.ID{}
	if base != nil && len(layers) > 1 {
		if _, err := storage.Clone(ctx, path, base.snap.Path(snapshot.File{Path: file.Path}), 0o600); err != nil {
			return err
		}
		layers, parent = layers[1:], layers[0].ID
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	for _, ref := range layers {
		if err := f.apply(ctx, out, ref, parent); err != nil {
			return err
		}
		parent = ref.ID
	}
	info, err := out.Stat()
	if err == nil && file.Size != anySize && info.Size() != file.Size {
		err = refuse("it has %d bytes and must have %d", info.Size(), file.Size)
	}
	return errors.Join(err, out.Chmod(mode))
}

func (f *fetch) apply(ctx context.Context, out *os.File, ref layerRef, parent layer.ID) error {
	l, err := layer.Open(ctx, f.source(ref), ref.Bytes, ref.ID, ref.Owner)
	if err != nil {
		return err
	}
	if l.Parent() != parent {
		return refuse("layer %s is on top of another one", ref.ID)
	}
	return l.Apply(ctx, out)
}
