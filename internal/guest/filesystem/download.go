package filesystem

import (
	"cmp"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"wrenn"
)

// computed are the magic numbers (statfs(2)) of file systems whose files are
// made while they are read and written: their sizes mean nothing, and no file
// can be put beside them.
var computed = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
}

func (s *Service) serveDownload(w http.ResponseWriter, r *http.Request) {
	user, err := s.httpCaller(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	path, err := user.path(r.URL.Query().Get("path"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f, info, err := openForReading(path)
	if err != nil {
		s.fail(w, r, failure("read", path, err))
		return
	}
	defer f.Close()
	// A read of some files under /proc blocks until something happens.
	stop := context.AfterFunc(r.Context(), func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }) // others do not block
	defer stop()
	if err := s.send(w, r, f, info); err != nil {
		s.abort(r, path, err)
	}
}

// openForReading opens a regular file, and never waits: opening a pipe or a
// device could hang, or do something.
func openForReading(path string) (*os.File, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err == nil {
		err = mustBeFile(path, info)
	}
	if err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err = f.Stat()
	if err == nil {
		err = mustBeFile(path, info) // it may have been replaced
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func mustBeFile(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return wrenn.Errorf(wrenn.Invalid, "path '%s' is a directory", printable(path))
	case !info.Mode().IsRegular():
		return wrenn.Errorf(wrenn.Invalid, "path '%s' is a pipe, socket or device, not a file", printable(path))
	default:
		return nil
	}
}

// send answers with a file's content. An error means that the answer is cut.
func (s *Service) send(w http.ResponseWriter, r *http.Request, f *os.File, info fs.FileInfo) error {
	head := w.Header()
	head.Set("Vary", "Accept-Encoding")
	head.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": filepath.Base(f.Name())}))
	coding, err := chooseEncoding(r.Header.Get("Accept-Encoding"))
	if err != nil {
		head.Del("Content-Disposition")
		s.refuse(w, r, http.StatusNotAcceptable, message(err))
		return nil
	}
	sized := info.Size() > 0 && !isComputed(f.Name())
	switch {
	case sized && (coding == identity || isPartial(r)):
		return sendSized(w, r, f, info)
	case coding == identity:
		head.Set("Content-Type", contentType(f))
		return sendAll(w, r, f)
	default:
		head.Set("Content-Type", contentType(f))
		least := int64(0)
		if sized {
			least = info.Size()
		}
		return sendGzip(w, r, f, least)
	}
}

// isPartial reports whether a request is about bytes or versions of the file
// itself, which a compressed one has other ones of.
func isPartial(r *http.Request) bool {
	return slices.ContainsFunc([]string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"},
		func(name string) bool { return r.Header.Get(name) != "" })
}

// isComputed reports whether path is on a file system of the computed kind.
func isComputed(path string) bool { return onFileSystem(path, computed) }

func onFileSystem(path string, magics []int64) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && slices.Contains(magics, stat.Type)
}

func contentType(f *os.File) string {
	return cmp.Or(mime.TypeByExtension(filepath.Ext(f.Name())), "application/octet-stream")
}

// sendSized leaves ranges and conditions to the standard library, and notices
// what that one keeps to itself: that the file became shorter, or failed.
func sendSized(w http.ResponseWriter, r *http.Request, f *os.File, info fs.FileInfo) error {
	watched := &shortCopyWriter{ResponseWriter: w}
	http.ServeContent(watched, r, f.Name(), info.ModTime(), f)
	return watched.err
}

// shortCopyWriter is a ResponseWriter that remembers a copy that failed or
// ended before its limit. http.ServeContent copies by io.CopyN, which calls
// ReadFrom with an io.LimitedReader; the connection's own ReadFrom may then
// use sendfile(2).
type shortCopyWriter struct {
	http.ResponseWriter
	err error
}

// Unwrap is for http.ResponseController.
func (w *shortCopyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *shortCopyWriter) ReadFrom(src io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, src)
	if limited, ok := src.(*io.LimitedReader); ok && err == nil && limited.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	w.err = cmp.Or(w.err, err)
	return n, err
}

// sendAll sends what there is to read, however much that is.
func sendAll(w http.ResponseWriter, r *http.Request, f *os.File) error {
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := io.Copy(w, f)
	return err
}

// sendGzip compresses what there is to read; less than least is an error.
func sendGzip(w http.ResponseWriter, r *http.Request, f *os.File, least int64) error {
	w.Header().Set("Content-Encoding", string(gzipped))
	if r.Method == http.MethodHead {
		return nil
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{z}, struct{ io.Reader }{f}, make([]byte, copyBuffer))
	if err != nil {
		return err
	}
	if n < least {
		return io.ErrUnexpectedEOF
	}
	return z.Close()
}
