package archive

import (
	"context"
	"fmt"
	"maps"

	"wrenn.dev"
	"wrenn.dev/internal/snapshot"
)

// UploadTemplate stores a template of an owner, which is a team's id: the snapshot of
// that id. What differs from the snapshot's base is stored for this template alone. It
// may be repeated, as Upload; the same holds for the round.
func (a *Archive) UploadTemplate(ctx context.Context, round uint64, owner, id string) (Stored, error) {
	sent, rec, err := a.upload(ctx, round, subject{owner: owner, template: id}, id, nil)
	if err != nil {
		return Stored{}, err
	}
	return sent, a.noteLayers(ctx, id, rec)
}

// FetchTemplate makes the template of that id that is stored at key, unless the host has
// it: a pinned snapshot that Copies names. The errors are those of Fetch.
func (a *Archive) FetchTemplate(ctx context.Context, owner, id, key string) error {
	rec, err := a.record(ctx, subject{owner: owner, template: id}, key)
	if err != nil {
		return err
	}
	man := rec.Snapshot.Portable()
	man.Pinned, man.Owner, man.Copy, man.Fetched = true, owner, wrenn.StoredNow(key), true
	f := &fetch{Archive: a, rec: rec}
	_, release, err := f.run(ctx, man)
	if err != nil {
		return fmt.Errorf("fetch template %s: %w", id, err)
	}
	defer release()
	return a.noteLayers(ctx, id, rec)
}

// Find returns an error unless the store has the record at key: NotFound if it does not.
func (a *Archive) Find(ctx context.Context, key string) error {
	_, err := a.Objects.Head(ctx, key)
	return err
}

// noteLayers notes the layers without a parent that the files of a template are, so that
// this host does not fetch them for the sandboxes of the template.
func (a *Archive) noteLayers(ctx context.Context, id string, rec *record) error {
	first := map[string]layerRef{}
	for _, f := range rec.Files {
		if len(f.Layers) == 1 {
			ref := f.Layers[0]
			ref.Template = "" // where sandboxes that are stored have it
			first[f.Path] = ref
		}
	}
	if len(first) == 0 {
		return nil
	}
	_, release, err := a.Snapshots.Load(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	known, err := a.readStored(id)
	if err != nil {
		return err
	}
	maps.Copy(known, storedOf(first))
	return a.writeStored(id, known)
}

// RemoveTemplate deletes all objects of a template. It is no error if there are none.
// One that is being uploaded at the same time may be left.
func (a *Archive) RemoveTemplate(ctx context.Context, owner, id string) error {
	if !isOwner(owner) || snapshot.CheckID(id) != nil {
		return wrenn.Errorf(wrenn.Invalid, "%.80q cannot own a template %.80q", owner, id)
	}
	for object, err := range a.Objects.List(ctx, templatePrefix(owner, id)) {
		if err == nil {
			err = a.Objects.Delete(ctx, object.Key)
		}
		if err != nil {
			return fmt.Errorf("remove the stored template %s: %w", id, err)
		}
	}
	return nil
}

// storedOf returns layers of files by their owners.
func storedOf(first map[string]layerRef) stored {
	out := stored{}
	for path, ref := range first {
		if out[ref.Owner] == nil {
			out[ref.Owner] = map[string]layerRef{}
		}
		out[ref.Owner][path] = ref
	}
	return out
}
