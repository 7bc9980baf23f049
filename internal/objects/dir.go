package objects

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
)

// Dir is a Store in a directory, which may be on a file system that several hosts have
// mounted. An object is a file; a key may not be the first parts of another key.
type Dir struct{ path string }

// temporary is the prefix of files that are being written. No key has it.
const temporary = ".put-"

// attemptsToPut bounds how often Put makes a directory again that a Delete removed
// at the same moment.
const attemptsToPut = 10

// OpenDir returns the store in the directory at path; FailedPrecondition when there is
// no such directory: a mount that is missing must not be taken for an empty store.
func OpenDir(path string) (*Dir, error) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the directory of the object store does not exist: create or mount it", Err: err}
	}
	return &Dir{path}, nil
}

func (d *Dir) file(key string) string { return filepath.Join(d.path, filepath.FromSlash(key)) }

// Put implements Store. An object survives a power cut.
func (d *Dir) Put(ctx context.Context, key string, body io.ReaderAt, size int64, ifAbsent bool) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if _, err := os.Stat(d.file(key)); err == nil && ifAbsent {
		return fileFailure("write", key, fs.ErrExist)
	}
	staged, err := d.stage(ctx, body, size)
	if err != nil {
		return inContext(ctx, fileFailure("write", key, err))
	}
	defer func() { _ = os.Remove(staged) }() // there is none after a rename
	for range attemptsToPut {
		if err = d.place(staged, key, ifAbsent); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return fileFailure("write", key, err)
	}
	return nil
}

// stage writes a body to a temporary file and returns its path.
func (d *Dir) stage(ctx context.Context, body io.ReaderAt, size int64) (path string, err error) {
	f, err := os.CreateTemp(d.path, temporary)
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, &contextReader{ctx, io.NewSectionReader(body, 0, size)})
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func (d *Dir) place(staged, key string, ifAbsent bool) error {
	file := d.file(key)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	put := os.Rename
	if ifAbsent {
		put = os.Link
	}
	if err := put(staged, file); err != nil {
		return err
	}
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) { // each may be new
		if err := durable.Sync(dir); err != nil || dir == filepath.Clean(d.path) {
			return err
		}
	}
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	f, err := os.Open(d.file(key))
	if err != nil {
		return nil, fileFailure("read", key, err)
	}
	info, err := f.Stat()
	if err == nil && offset+length > info.Size() {
		err = short(key)
	} else if err != nil {
		err = fileFailure("read", key, err)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return body{&contextReader{ctx, io.NewSectionReader(f, offset, length)}, f}, nil
}

// Head implements Store.
func (d *Dir) Head(_ context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	info, err := os.Stat(d.file(key))
	if err == nil && info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Info{}, fileFailure("look at", key, err)
	}
	return Info{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
}

// errStop ends a walk whose caller wants no more.
var errStop = errors.New("stop")

// List implements Store.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		w := walk{ctx: ctx, dir: d, prefix: prefix, yield: yield}
		if err := w.list(d.path, ""); err != nil && !errors.Is(err, errStop) {
			yield(Info{}, inContext(ctx, err))
		}
	}
}

// walk lists a directory in the order of keys, in which "a.b" comes before "a/b".
type walk struct {
	ctx    context.Context
	dir    *Dir
	prefix string
	yield  func(Info, error) bool
}

func (w *walk) list(path, key string) error {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && key != "": // removed since then
		entries = nil
	case err != nil:
		return fileFailure("list", w.prefix, err)
	}
	sortAsKeys(entries)
	for _, e := range entries {
		if err := w.visit(path, key+e.Name(), e); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) visit(path, key string, e fs.DirEntry) error {
	switch {
	case w.ctx.Err() != nil:
		return context.Cause(w.ctx)
	case e.IsDir():
		key += "/"
		if !strings.HasPrefix(key, w.prefix) && !strings.HasPrefix(w.prefix, key) {
			return nil
		}
		return w.list(filepath.Join(path, e.Name()), key)
	case !strings.HasPrefix(key, w.prefix):
		return nil
	}
	if CheckKey(key) != nil { // a file that is no object
		return nil //nolint:nilerr // it is left alone
	}
	info, err := w.dir.Head(w.ctx, key)
	switch {
	case wrenn.CodeOf(err) == wrenn.NotFound: // deleted since then
		return nil
	case err != nil:
		return err
	case !w.yield(info, nil):
		return errStop
	}
	return nil
}

// Delete implements Store. It also removes directories that are empty then.
func (d *Dir) Delete(_ context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	file := d.file(key)
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileFailure("delete", key, err)
	}
	for dir := filepath.Dir(file); dir != filepath.Clean(d.path); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil { // it has other objects
			break
		}
	}
	return nil //nolint:nilerr // as above
}

// DeleteUnfinished implements Store. Files that are being written have no keys, so the
// prefix does not matter; the time is that of the last write.
func (d *Dir) DeleteUnfinished(ctx context.Context, prefix string, before time.Time) (n int, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return 0, fileFailure("list unfinished uploads of", prefix, err)
	}
	for _, e := range entries {
		switch {
		case ctx.Err() != nil:
			return n, context.Cause(ctx)
		case n == maxUnfinished:
			return n, nil
		case !strings.HasPrefix(e.Name(), temporary) || !e.Type().IsRegular():
			continue
		}
		info, err := e.Info()
		if err == nil && !info.ModTime().Before(before) {
			continue
		}
		if err == nil {
			err = os.Remove(filepath.Join(d.path, e.Name()))
		}
		switch {
		case err == nil:
			n++
		case !errors.Is(err, fs.ErrNotExist): // renamed or removed since then
			return n, fileFailure("abort the upload of", e.Name(), err)
		}
	}
	return n, nil
}
