package archive

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
)

// headTimeout bounds how long an export asks the store whether it has a layer.
const headTimeout = 5 * time.Second

// Export writes to w what Upload of a snapshot would put into the store, as a tar of objects,
// of which the record is the last. Layers that the store has are left out; while it does not
// answer, none are. The archive's store may be nil.
func (a *Archive) Export(ctx context.Context, round uint64, owner, sandbox, id string, state []byte, w io.Writer) error {
	out := &exported{has: a.Objects, tar: tar.NewWriter(w)}
	to := &Archive{Objects: out, Snapshots: a.Snapshots, IsShared: a.IsShared}
	if _, err := to.Upload(ctx, round, owner, sandbox, id, state); err != nil {
		return err
	}
	return out.tar.Close()
}

// exported is a store of objects whose puts are written to a tar.
type exported struct {
	objects.Store // has none of the other methods

	has objects.Store // nil for none
	tar *tar.Writer
}

// Put writes an object.
func (e *exported) Put(_ context.Context, key string, body io.ReaderAt, size int64, _ bool) error {
	if err := e.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: key, Size: size, Mode: 0o600}); err != nil {
		return err
	}
	_, err := io.Copy(e.tar, io.NewSectionReader(body, 0, size))
	return err
}

// Head asks the store.
func (e *exported) Head(ctx context.Context, key string) (objects.Info, error) {
	if e.has == nil {
		return objects.Info{}, wrenn.Errorf(wrenn.NotFound, "there is no store")
	}
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	info, err := e.has.Head(ctx, key)
	if err != nil && wrenn.CodeOf(err) != wrenn.NotFound {
		e.has = nil // it is not asked again
	}
	return info, err
}

// Import makes a snapshot of a sandbox from what Export has written, of at most so many bytes,
// and leases it, as Fetch. Layers that are not in it are read from the archive's store.
func (a *Archive) Import(ctx context.Context, owner, sandbox string, r io.Reader, most int64) (id string, state []byte, release func(), err error) {
	staged, err := a.Snapshots.Stage()
	if err != nil {
		return "", nil, nil, err
	}
	defer func() { err = errors.Join(err, staged.Discard(context.WithoutCancel(ctx))) }()
	dir, err := objects.OpenDir(staged.Machine())
	if err != nil {
		return "", nil, nil, err
	}
	key, err := unpack(ctx, dir, staged.Machine(), io.LimitReader(r, most))
	if err != nil {
		return "", nil, nil, err
	}
	from := &Archive{Objects: &imported{Dir: dir, rest: a.Objects}, Snapshots: a.Snapshots, IsShared: a.IsShared}
	snap, state, release, err := from.Fetch(ctx, owner, sandbox, key)
	if err != nil {
		return "", nil, nil, err
	}
	return snap.ID, state, release, nil
}

// unpack puts the objects of a tar into dir, which is at path, and returns the key of the last.
func unpack(ctx context.Context, dir *objects.Dir, path string, r io.Reader) (last string, err error) {
	broken := func(err error) error {
		return &wrenn.Error{Code: wrenn.Unavailable, Message: "what another host sent of the sandbox broke off, or is larger than the sandbox can be", Err: err}
	}
	spool, err := os.CreateTemp(path, "sent-")
	if err != nil {
		return "", err
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil { // its content stays until it is closed
		return "", err
	}
	for in := tar.NewReader(r); ; {
		head, err := in.Next()
		if errors.Is(err, io.EOF) && last != "" {
			return last, nil
		}
		if err != nil {
			return "", broken(err)
		}
		if _, err := spool.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		if n, err := io.Copy(spool, in); err != nil || n != head.Size {
			return "", broken(err)
		}
		if err := dir.Put(ctx, head.Name, spool, head.Size, false); err != nil {
			return "", err
		}
		last = head.Name
	}
}

// imported reads what was sent, and the rest from the store.
type imported struct {
	*objects.Dir

	rest objects.Store // nil for none
}

// Head returns what an object is like.
func (i *imported) Head(ctx context.Context, key string) (objects.Info, error) {
	info, err := i.Dir.Head(ctx, key)
	if wrenn.CodeOf(err) != wrenn.NotFound || i.rest == nil {
		return info, err
	}
	return i.rest.Head(ctx, key)
}

// Get returns bytes of an object.
func (i *imported) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	body, err := i.Dir.Get(ctx, key, offset, length)
	if wrenn.CodeOf(err) != wrenn.NotFound || i.rest == nil {
		return body, err
	}
	return i.rest.Get(ctx, key, offset, length)
}
