package objects

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"slices"
)

// body is a reader and what to close after it.
type body struct {
	io.Reader
	io.Closer
}

// contextReader ends a read when a context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// inContext returns the cause of a context that has ended, and else err.
func inContext(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sortAsKeys sorts the entries of a directory as the keys below them are sorted.
func sortAsKeys(entries []fs.DirEntry) {
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(keyName(a), keyName(b)) })
}

func keyName(e fs.DirEntry) string {
	if e.IsDir() {
		return e.Name() + "/"
	}
	return e.Name()
}
