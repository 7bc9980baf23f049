// Package objects stores named byte strings, in a directory or in an S3 bucket. An
// object is written whole or not at all, and does not change after that. The package
// needs little of a server: put, ranged get, head, list by prefix and delete.
package objects

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// Info describes an object.
type Info struct {
	Key      string
	Size     int64 // bytes
	Modified time.Time
}

// Store is a set of objects. It is safe for concurrent use by any number of processes.
//
// Errors are of the type *wrenn.Error: NotFound when there is no such object,
// AlreadyExists when a conditional put finds one, Invalid for a malformed key,
// PermissionDenied when the store refuses the caller or is read-only, Exhausted when it
// is full, FailedPrecondition when the bucket or directory does not exist, or an object
// is shorter than asked for, Unavailable when another attempt may succeed. After ctx has
// ended the error is its cause.
type Store interface {
	// Put writes the first size bytes of body as the object of that key, and replaces an
	// earlier one. With ifAbsent it replaces none, and returns AlreadyExists; a put that
	// was repeated because its answer was lost may return that for its own object. The
	// body may be read more than once.
	Put(ctx context.Context, key string, body io.ReaderAt, size int64, ifAbsent bool) error
	// Get returns length bytes of an object, from offset on. The reader returns all of
	// them or an error. The caller must close it.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	// Head returns what an object is like.
	Head(ctx context.Context, key string) (Info, error)
	// List returns the objects whose keys begin with prefix, in the order of their keys;
	// after an error nothing follows. An object that is put or deleted at the same time
	// may be in it or not; a server may also leave out an object that was put a moment ago.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	// Delete removes an object. It is no error if there is none.
	Delete(ctx context.Context, key string) error
	// DeleteUnfinished removes what puts have left that began before that time, for keys
	// with the prefix, and did not end: their programs were killed. It returns how many it
	// removed, also with an error. A put that is still at work then fails, and may be
	// repeated. One call removes at most maxUnfinished; the rest stays for the next.
	DeleteUnfinished(ctx context.Context, prefix string, before time.Time) (int, error)
}

// maxUnfinished bounds what one call of DeleteUnfinished removes.
const maxUnfinished = 1000

// maxKey is the length of a key that S3 allows, less room for the prefix of a store.
const maxKey = 512

// CheckKey returns Invalid unless key can name an object: parts of letters, digits and
// ". _ -", none of which begins with a dot, separated by slashes.
func CheckKey(key string) error {
	if len(key) > maxKey {
		return wrenn.Errorf(wrenn.Invalid, "the key of an object has %d bytes, more than %d", len(key), maxKey)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || strings.ContainsFunc(part, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r)
		}) {
			return wrenn.Errorf(wrenn.Invalid, "%.80q cannot be the key of an object", key)
		}
	}
	return nil
}

// ReadAll returns the content of an object that has at most limit bytes; Invalid when it
// has more.
func ReadAll(ctx context.Context, s Store, key string, limit int64) ([]byte, error) {
	info, err := s.Head(ctx, key)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, wrenn.Errorf(wrenn.Invalid, "the object %s has %d bytes, more than %d", key, info.Size, limit)
	}
	if info.Size == 0 {
		return nil, nil
	}
	body, err := s.Get(ctx, key, 0, info.Size)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data := make([]byte, info.Size)
	_, err = io.ReadFull(body, data)
	return data, err
}

// failure returns the error of a call for an object. The message is public, so it names
// the key alone.
func failure(code wrenn.Code, doing, key, why string, err error) error {
	return &wrenn.Error{Code: code, Message: "cannot " + doing + " the object " + key + ": " + why, Err: err}
}

// fileFailure is failure for an error of a file system.
func fileFailure(doing, key string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failure(wrenn.NotFound, doing, key, "it does not exist", nil)
	case errors.Is(err, fs.ErrExist):
		return failure(wrenn.AlreadyExists, doing, key, "it exists", nil)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return failure(wrenn.Exhausted, doing, key, "the store is full", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return failure(wrenn.PermissionDenied, doing, key, "the store does not allow it", err)
	default:
		return failure(wrenn.Unavailable, doing, key, "the store failed", err)
	}
}

// short returns the error for an object that ends before the bytes that were asked for.
func short(key string) error {
	return failure(wrenn.FailedPrecondition, "read", key, "it is shorter than it must be", nil)
}
