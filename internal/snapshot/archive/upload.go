// Package archive copies the snapshots of a host to a store of objects, and makes
// snapshots from there on another host. A large file is stored as what differs from the
// same file of the snapshot's base; the base is stored once for each owner.
//
//	teams/TEAM/layers/SHA256.ROUND        blocks of a file that differ from its parent; see package layer
//	teams/TEAM/snapshots/ID.SHA256.ROUND  a record: the manifest, small files, and the layers of large ones
//	teams/TEAM/templates/ID/SHA256        a record of a template, which has the layers below
//	teams/TEAM/templates/ID/layers/SHA256
//	shared/layers/SHA256                  layers of snapshots that belong to no team
//
// # Rounds
//
// Layers are shared: an upload finds one in the store and refers to it, and must not do so
// while a collector deletes it. So uploads belong to rounds, which are numbered. An upload
// of round N refers to layers of rounds N and N-1 alone, and stores what it does not find
// there under a name of round N. Once no upload of a round before N is at work or begins
// any more, on any host, nothing new refers to an object of a round before N-1: what no
// snapshot refers to then is garbage for good, and its name is never used again. Collect
// may be late, repeated, killed, or run twice at the same time.
//
// Round 0 has objects of older agents, and of hosts that no control plane tells a round;
// their names have no number.
package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/snapshot/layer"
)

// Archive copies the snapshots of one host. It is safe for concurrent use.
type Archive struct {
	Objects   objects.Store
	Snapshots *snapshot.Store
	// IsShared reports whether a snapshot belongs to no team.
	IsShared func(id string) bool
}

// Stored describes a stored snapshot.
type Stored struct {
	Key   string // of its record
	Bytes int64  // that were sent
}

// Upload stores a snapshot of a sandbox, with the caller's state of up to 1 MiB. The
// owner is a team's id. An upload that was interrupted is repeated by calling Upload
// again; layers that the store has of this round or the last are not sent twice. The round
// must not count as ended before the caller has recorded the key.
func (a *Archive) Upload(ctx context.Context, round uint64, owner, sandbox, id string, state []byte) (Stored, error) {
	sent, _, err := a.upload(ctx, round, subject{owner: owner, sandbox: sandbox}, id, state)
	return sent, err
}

// upload is Upload for any subject. It also returns the record that is stored.
func (a *Archive) upload(ctx context.Context, round uint64, of subject, id string, state []byte) (Stored, *record, error) {
	if !isOwner(of.owner) {
		return Stored{}, nil, wrenn.Errorf(wrenn.Invalid, "%.80q cannot own a stored snapshot", of.owner)
	}
	snap, release, err := a.Snapshots.Load(ctx, id)
	if err != nil {
		return Stored{}, nil, err
	}
	defer release()
	u := &upload{Archive: a, subject: of, round: round}
	base, releaseBase, err := u.base(ctx, snap.Base)
	if err != nil {
		return Stored{}, nil, err
	}
	defer releaseBase()
	rec := &record{Format: formatOf(round), Owner: of.owner, Sandbox: of.sandbox, Template: of.template, Snapshot: snap.Portable(), State: state}
	if of.template == "" {
		rec.Round = round
	}
	for _, f := range snap.Files {
		stored, err := u.file(ctx, snap, f, base)
		if err != nil {
			return Stored{}, nil, fmt.Errorf("store %s of snapshot %s: %w", f.Path, id, err)
		}
		rec.Files = append(rec.Files, stored)
	}
	text, err := json.Marshal(rec)
	if err != nil {
		return Stored{}, nil, err
	}
	key := of.keyOf(id, rec.Round, text)
	return Stored{key, u.sent + int64(len(text))}, rec, a.Objects.Put(ctx, key, bytes.NewReader(text), int64(len(text)), false)
}

// upload is one call of Upload.
type upload struct {
	*Archive
	subject
	round uint64
	sent  int64
}

// mayUse reports whether the upload may refer to a layer that is in the store already.
func (u *upload) mayUse(ref layerRef) bool {
	return !ref.isCollected() || ref.Round == u.round || ref.Round+1 == u.round
}

// stored is the content of a snapshot's stored.json: the layers of its files, by owner
// and path. They have no parent.
type stored map[string]map[string]layerRef

// baseFiles are the stored files of a base. nil has none.
type baseFiles struct {
	snap   *snapshot.Snapshot
	layers map[string]layerRef // by path
}

// base stores the base of a snapshot, unless the owner has it stored, and leases it.
// Without a base, or if it cannot be read, there is none.
func (u *upload) base(ctx context.Context, id string) (*baseFiles, func(), error) {
	if id == "" {
		return nil, func() {}, nil
	}
	snap, release, err := u.Snapshots.Load(ctx, id)
	if code := wrenn.CodeOf(err); code == wrenn.NotFound || code == wrenn.FailedPrecondition {
		return nil, func() {}, nil // then the whole file is stored
	}
	if err != nil {
		return nil, nil, err
	}
	known, err := u.readStored(id)
	owner := u.owner
	if known[Shared] != nil || u.IsShared != nil && u.IsShared(id) { // fetched, or this host's own
		owner = Shared
	}
	var layers map[string]layerRef
	if err == nil {
		layers, err = u.baseLayers(ctx, snap, known, owner)
	}
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("store snapshot %s: %w", id, err)
	}
	return &baseFiles{snap, layers}, release, nil
}

// baseLayers stores the files of a base for an owner. Known is what is stored already.
func (u *upload) baseLayers(ctx context.Context, snap *snapshot.Snapshot, known stored, owner string) (_ map[string]layerRef, err error) {
	layers := known[owner]
	if layers == nil {
		layers = map[string]layerRef{}
	}
	for _, f := range snap.Files {
		if isInline(f) {
			continue
		}
		if ref, ok := layers[f.Path]; ok && u.mayUse(ref) && u.has(ctx, ref) {
			continue
		}
		if layers[f.Path], err = u.layer(ctx, snap, f, nil, layerRef{Owner: owner}); err != nil {
			return nil, err
		}
		known[owner] = layers
		if err := u.writeStored(snap.ID, known); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

func (a *Archive) readStored(id string) (stored, error) {
	text, err := a.Snapshots.Stored(id)
	if err != nil {
		return nil, err
	}
	known := stored{}
	if text != nil && json.Unmarshal(text, &known) != nil {
		known = stored{} // it is stored again
	}
	return known, nil
}

func (a *Archive) writeStored(id string, known stored) error {
	text, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return a.Snapshots.SetStored(id, text)
}

// has reports whether the store has a layer. If it cannot be told it has not.
func (a *Archive) has(ctx context.Context, ref layerRef) bool {
	info, err := a.Objects.Head(ctx, ref.key())
	return err == nil && info.Size == ref.Bytes
}

func isInline(f snapshot.File) bool { return f.SHA256 != "" && f.Size <= inlineFile }

// file stores one file of a snapshot.
func (u *upload) file(ctx context.Context, snap *snapshot.Snapshot, f snapshot.File, base *baseFiles) (file, error) {
	path := snap.Path(f)
	info, err := os.Stat(path)
	if err != nil {
		return file{}, err
	}
	out := file{Path: f.Path, Size: f.Size, Mode: uint32(info.Mode().Perm())}
	if isInline(f) {
		out.Content, err = os.ReadFile(path)
		return out, err
	}
	var parent *os.File
	var on *layer.Parent
	ref := layerRef{Owner: u.owner, Template: u.template}
	if base != nil {
		if under, ok := base.layers[f.Path]; ok {
			if parent, err = os.Open(base.snap.Path(f)); err != nil {
				return file{}, err
			}
			defer parent.Close()
			on, out.Layers = &layer.Parent{ID: under.ID, File: parent}, []layerRef{under}
		}
	}
	ref, err = u.layer(ctx, snap, f, on, ref)
	out.Layers = append(out.Layers, ref)
	return out, err
}

// layer stores the layer of a file on top of a parent, nil for none, as ref says, and
// returns ref with the layer's id.
func (u *upload) layer(ctx context.Context, snap *snapshot.Snapshot, f snapshot.File, on *layer.Parent, ref layerRef) (_ layerRef, err error) {
	staged, err := u.Snapshots.Stage()
	if err != nil {
		return layerRef{}, err
	}
	defer func() { err = errors.Join(err, staged.Discard(ctx)) }()
	packed, err := os.Create(filepath.Join(staged.Machine(), "layer"))
	if err != nil {
		return layerRef{}, err
	}
	defer packed.Close()
	content, err := os.Open(snap.Path(f))
	if err != nil {
		return layerRef{}, err
	}
	defer content.Close()
	info, err := layer.Write(ctx, packed, content, on, ref.Owner)
	if err != nil {
		return layerRef{}, err
	}
	ref.ID, ref.Bytes = info.ID, info.Bytes
	if found, ok := u.find(ctx, ref); ok {
		return found, nil
	}
	if ref.isCollected() {
		ref.Round = u.round
	}
	u.sent += info.Bytes
	return ref, u.Objects.Put(ctx, ref.key(), packed, info.Bytes, false)
}

// find returns where the store has a layer that the upload may refer to.
func (u *upload) find(ctx context.Context, ref layerRef) (layerRef, bool) {
	if !ref.isCollected() {
		return ref, u.has(ctx, ref)
	}
	for _, ref.Round = range []uint64{u.round, u.round - min(u.round, 1)} {
		if u.has(ctx, ref) {
			return ref, true
		}
	}
	return ref, false
}

// source returns the source of a layer's object.
func (a *Archive) source(ref layerRef) layer.Source {
	return func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return a.Objects.Get(ctx, ref.key(), offset, length)
	}
}

// DeleteUnfinished removes what uploads of any host have left in the store that began
// before that time and did not end. It returns how many it removed, also with an error.
func (a *Archive) DeleteUnfinished(ctx context.Context, before time.Time) (n int, err error) {
	for _, prefix := range []string{"teams/", prefixOf(Shared)} { // the bucket may have uploads of other programs
		removed, err := a.Objects.DeleteUnfinished(ctx, prefix, before)
		if n += removed; err != nil {
			return n, err
		}
	}
	return n, nil
}
