package filesystem

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
)

const (
	// filePart is the name of the parts of a multipart upload that are files.
	filePart = "file"
	// maxParts bounds the memory that one upload takes.
	maxParts = 10_000
	// maxEpilogue bounds what may follow the last part of a form, RFC 2046 §5.1.1.
	maxEpilogue = 64 << 10
)

// written describes a file in the answer to an upload.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func (s *Service) serveUpload(w http.ResponseWriter, r *http.Request) {
	files, err := s.upload(r, &idleReader{source: r.Body, conn: http.NewResponseController(w), limit: s.uploadIdle})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(r.Context(), s.log, w, http.StatusOK, files)
}

// upload writes the files of a request. When it fails before all were received,
// nothing of it stays.
func (s *Service) upload(r *http.Request, body io.Reader) ([]written, error) {
	user, err := s.httpCaller(r)
	if err != nil {
		return nil, err
	}
	metadata, err := metadataFromHeader(r.Header)
	if err != nil {
		return nil, err
	}
	u := &upload{user: user, metadata: metadata, targets: map[string]bool{}, buffer: make([]byte, copyBuffer)}
	defer func() {
		_ = user.Do(func() error { return u.undo.Run(r.Context()) }) // what it cannot remove any more stays
	}()
	if err := u.receive(r, body); err != nil {
		return nil, failure("write", u.current, err)
	}
	if err := u.publish(); err != nil {
		return nil, failure("write", u.current, err)
	}
	return u.answer(), nil
}

// upload is one request that writes files. None of them is visible before all
// were received.
type upload struct {
	user     caller
	metadata map[string]string
	targets  map[string]bool // that it has files for
	staged   []*stagedFile
	current  string // the path being worked on, for errors
	undo     rollback.Stack
	buffer   []byte
}

// receive reads the request's body to its end and stages the files in it.
func (u *upload) receive(r *http.Request, raw io.Reader) error {
	// The parsers read small pieces; the connection is read in large ones.
	body, err := decode(r.Header.Get("Content-Encoding"), bufio.NewReaderSize(raw, copyBuffer))
	if err != nil {
		return err
	}
	media, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return wrenn.Errorf(wrenn.Invalid, "Content-Type must be multipart/form-data or application/octet-stream")
	}
	path := r.URL.Query().Get("path")
	switch media {
	case "multipart/form-data":
		if err := readForm(body, parameters["boundary"], path, u.stage); err != nil {
			return err
		}
		return drain(body)
	case "application/octet-stream":
		if path == "" {
			return wrenn.Errorf(wrenn.Invalid, "the query parameter path is needed to upload application/octet-stream")
		}
		return u.stage(path, body)
	default:
		return wrenn.Errorf(wrenn.Invalid, "Content-Type must be multipart/form-data or application/octet-stream, not '%s'", printable(media))
	}
}

// readForm calls stage for each part named "file" with its path: the given one or,
// when that is empty, the part's file name. It skips other parts.
func readForm(body io.Reader, boundary, path string, stage func(path string, content io.Reader) error) error {
	form := multipart.NewReader(cutShort(body), boundary)
	for range maxParts {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return broken(err)
		}
		if part.FormName() != filePart {
			continue
		}
		target := path
		if target == "" {
			target = partPath(part.Header.Get("Content-Disposition"))
		}
		if target == "" {
			return wrenn.Errorf(wrenn.Invalid, "a part has no file name, and the query has no path")
		}
		if err := stage(target, part); err != nil {
			return err
		}
	}
	return wrenn.Errorf(wrenn.Invalid, "more than %d parts: send fewer files at a time", maxParts)
}

// cutShort makes the end of form an error for multipart.Reader, which takes an end
// among a part's headers for the end of the form. It does not read on after the last
// boundary; the line feed ends a boundary that came without one.
func cutShort(form io.Reader) io.Reader {
	return io.MultiReader(form, strings.NewReader("\r\n"), cutReader{})
}

// partPath returns the file name of a part as it was sent; multipart.Part.FileName
// returns only its last element.
func partPath(disposition string) string {
	_, parameters, err := mime.ParseMediaType(disposition)
	if err != nil {
		return ""
	}
	return parameters["filename"]
}

// stage reads content into a staged file.
func (u *upload) stage(requested string, content io.Reader) error {
	path, err := u.user.path(requested)
	if err != nil {
		return err
	}
	u.current = path
	file, err := as(u.user, func() (*stagedFile, error) { return u.open(path) })
	if err != nil {
		return err
	}
	u.staged = append(u.staged, file)
	return file.fill(content, u.buffer, u.metadata)
}

// open makes the staged file of a path. The caller has the user's credentials.
func (u *upload) open(path string) (*stagedFile, error) {
	target, err := followLinks(path)
	if err != nil {
		return nil, err
	}
	if u.targets[target] {
		return nil, wrenn.Errorf(wrenn.Invalid, "path '%s' occurs twice in one upload", printable(path))
	}
	u.targets[target] = true
	return newStagedFile(path, target, u.user, &u.undo)
}

// publish puts the staged files in their targets' places.
func (u *upload) publish() error {
	for _, file := range u.staged {
		u.current = file.path
		if err := u.user.Do(file.publish); err != nil {
			return err
		}
	}
	u.undo.Keep()
	return nil
}

func (u *upload) answer() []written {
	answer := make([]written, 0, len(u.staged))
	for _, file := range u.staged {
		answer = append(answer, written{Path: printable(file.path), Name: printable(filepath.Base(file.path)), Type: "file", Metadata: u.metadata})
	}
	return answer
}

// drain reads what follows the last part: the end of a compressed body with its
// checksum, or of the transfer, which may be cut there.
func drain(body io.Reader) error {
	switch _, err := io.CopyN(io.Discard, body, maxEpilogue); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return broken(err)
	default:
		return wrenn.Errorf(wrenn.Invalid, "the body continues after the last part")
	}
}

// decode undoes the Content-Encoding of a request. Only the disk bounds the size of
// the result.
func decode(coding string, body io.Reader) (io.Reader, error) {
	switch strings.ToLower(strings.TrimSpace(coding)) {
	case "", string(identity):
		return body, nil
	case string(gzipped):
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, broken(err)
		}
		return z, nil
	default:
		return nil, wrenn.Errorf(wrenn.Invalid, "Content-Encoding must be gzip or identity")
	}
}

// broken returns the error for a body that ended early, stalled, or does not match
// its headers.
func broken(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: "the upload stalled and was canceled", Err: err}
	}
	return &wrenn.Error{Code: wrenn.Invalid, Message: "the upload is incomplete or malformed: " + printable(err.Error()), Err: err}
}

// idleReader reads a request's body and fails when nothing arrived for the limit.
// The deadline stays when the body is not read to its end, since the server reads the
// rest and must not wait without a bound, either.
type idleReader struct {
	source io.Reader
	conn   *http.ResponseController
	limit  time.Duration
}

func (r *idleReader) Read(p []byte) (int, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(r.limit)) // fails for a server without deadlines, which tests use
	n, err := r.source.Read(p)
	if errors.Is(err, io.EOF) {
		_ = r.conn.SetReadDeadline(time.Time{}) // or the server would take its expiry for the end of the connection
	}
	return n, err
}

// cutReader is the end of a body that is not complete.
type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
