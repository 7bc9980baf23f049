package filesystem

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// computed are the magic numbers (statfs(2)) of file systems whose files are
// computed as they are read and written: their sizes are meaningless, and no file can
// be made beside them.
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
	var f *os.File
	var info fs.FileInfo
	err = user.Do(func() (err error) {
		f, info, err = openForReading(path)
		return err
	})
	if err != nil {
		s.fail(w, r, failure("read", path, err))
		return
	}
	defer f.Close()
	// A read of some files under /proc waits for an event.
	stop := context.AfterFunc(r.Context(), func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }) // fails for files whose reads do not block
	defer stop()
	from := source{File: f, info: info, user: user}
	if r.Method != http.MethodHead {
		if err := from.readAhead(); err != nil {
			s.fail(w, r, failure("read", path, err))
			return
		}
	}
	if err := s.send(w, r, from); err != nil {
		s.abort(r, path, err)
	}
}

// openForReading opens a regular file and nothing else: opening a pipe or a device
// could hang, or have effects.
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

// source is a file that is open for a caller.
type source struct {
	*os.File

	info  fs.FileInfo
	user  caller
	ahead []byte // of a computed file: its first bytes, which were read already
}

// readAhead reads the first bytes of a computed file, some of which fail although
// they could be opened, as /proc/1/mem does: an answer that has begun could only break off.
func (f *source) readAhead() error {
	if !f.isComputed() {
		return nil
	}
	buffer := make([]byte, 4<<10) // such a file may give a record at a time
	n, err := computedReader{*f}.Read(buffer)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	f.ahead = buffer[:n]
	return nil
}

// isComputed reports whether the file is on a file system of the computed kind.
func (f source) isComputed() bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var stat unix.Statfs_t
	var statErr error
	err = conn.Control(func(fd uintptr) { statErr = unix.Fstatfs(int(fd), &stat) })
	return err == nil && statErr == nil && slices.Contains(computed, stat.Type)
}

// reader returns a reader of the whole file. Files of the computed kind may check
// the credentials of each read; others check only the open, so sendfile(2) can be used.
func (f source) reader() io.Reader {
	if f.isComputed() {
		return io.MultiReader(bytes.NewReader(f.ahead), computedReader{f})
	}
	return f.File
}

// computedReader reads with the caller's credentials.
type computedReader struct{ source }

func (r computedReader) Read(p []byte) (int, error) {
	return as(r.user, func() (int, error) { return r.File.Read(p) })
}

// send answers with a file's content. After an error the answer is incomplete.
func (s *Service) send(w http.ResponseWriter, r *http.Request, f source) error {
	head := w.Header()
	head.Set("Vary", "Accept-Encoding")
	head.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": filepath.Base(f.Name())}))
	coding, err := chooseEncoding(r.Header.Get("Accept-Encoding"))
	if err != nil {
		head.Del("Content-Disposition")
		s.refuse(w, r, http.StatusNotAcceptable, message(err))
		return nil
	}
	sized := f.info.Size() > 0 && !f.isComputed()
	switch {
	case sized && (coding == identity || isPartial(r)):
		return sendSized(w, r, f)
	case coding == identity:
		head.Set("Content-Type", contentType(f.File))
		return sendAll(w, r, f)
	default:
		head.Set("Content-Type", contentType(f.File))
		least := int64(0)
		if sized {
			least = f.info.Size()
		}
		return sendGzip(w, r, f, least)
	}
}

// isPartial reports whether a request is about bytes or versions of the file
// itself, which differ for a compressed answer.
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

// sendSized leaves ranges and conditions to the standard library, and returns the
// errors that it hides: that the file became shorter, or a read failed.
func sendSized(w http.ResponseWriter, r *http.Request, f source) error {
	watched := &shortCopyWriter{ResponseWriter: w}
	http.ServeContent(watched, r, f.Name(), f.info.ModTime(), f.File)
	return watched.err
}

// shortCopyWriter is a ResponseWriter that records a copy that failed or ended
// before its limit. http.ServeContent copies by io.CopyN, which calls
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

// sendAll sends the file to its end.
func sendAll(w http.ResponseWriter, r *http.Request, f source) error {
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := io.Copy(w, f.reader())
	return err
}

// sendGzip sends the file to its end, compressed. Less than least bytes is an error.
func sendGzip(w http.ResponseWriter, r *http.Request, f source, least int64) error {
	w.Header().Set("Content-Encoding", string(gzipped))
	if r.Method == http.MethodHead {
		return nil
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{z}, struct{ io.Reader }{f.reader()}, make([]byte, copyBuffer))
	if err != nil {
		return err
	}
	if n < least {
		return io.ErrUnexpectedEOF
	}
	return z.Close()
}
