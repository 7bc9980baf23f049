package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"path"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/contract"
)

const (
	// maxFile bounds a file of files/write; files/stream/write takes larger ones.
	maxFile = 100 << 20
	// maxForm bounds a form with such a file; boundaries, headers and the other fields are much shorter than 64 KiB.
	maxForm = maxFile + 64<<10
	// maxField bounds a field of a form that is not the file: PATH_MAX.
	maxField = 4096
	// chunk is the size of a piece of a download.
	chunk = 64 << 10
)

func (h *handlers) WriteFile(ctx context.Context, req oapi.WriteFileRequestObject) (oapi.WriteFileResponseObject, error) {
	if err := h.s.upload(ctx, wrenn.SandboxID(req.ID), value(req.Params.User), req.Body, maxFile); err != nil {
		return nil, err
	}
	return oapi.WriteFile204Response{}, nil
}

func (h *handlers) StreamWriteFile(ctx context.Context, req oapi.StreamWriteFileRequestObject) (oapi.StreamWriteFileResponseObject, error) {
	if err := h.s.upload(ctx, wrenn.SandboxID(req.ID), value(req.Params.User), req.Body, 0); err != nil {
		return nil, err
	}
	return oapi.StreamWriteFile204Response{}, nil
}

// upload streams the file of a form to the service. user is that of the query, "" if it
// has none. A limit of 0 is none.
func (s *Server) upload(ctx context.Context, id wrenn.SandboxID, user string, form *multipart.Reader, limit int64) error {
	up, err := s.contract.readForm(form, limit)
	if err != nil {
		return err
	}
	if user != "" && up.user != "" {
		return invalid("the user is in the query and in the form: give it once")
	}
	up.user = cmp.Or(up.user, user)
	err = s.service.WriteFile(ctx, callerOf(ctx), id, up.user, up.path, up.file)
	if up.file.err != nil {
		return up.file.err // the cause of the service's error
	}
	return err
}

// form is an upload whose file has not been read.
type form struct {
	path, user string
	file       *lastPart
}

// readForm reads the fields before the file, which must be the last.
func (d *checked) readForm(fields *multipart.Reader, limit int64) (*form, error) {
	out := &form{}
	seen := map[string]bool{}
	for {
		part, err := fields.NextPart()
		if whole(err) {
			return nil, invalid("the form has no field %q", "file")
		}
		if err != nil {
			return nil, brokenBody(err)
		}
		name := part.FormName()
		if seen[name] {
			return nil, invalid("the form has two fields %q", shorten(name))
		}
		seen[name] = true
		switch name {
		case "file":
			if out.path == "" {
				return nil, invalid("the field path must come before file")
			}
			out.file = &lastPart{part: part, form: fields, limit: limit}
			return out, nil
		case "path":
			out.path, err = field(part, d.path)
		case "user":
			out.user, err = field(part, d.user)
		default:
			err = invalid("the form has an unknown field %q: use path, user and file", shorten(name))
		}
		if err != nil {
			return nil, err
		}
	}
}

// field reads and validates a short field.
func field(part *multipart.Part, schema contract.Schema) (string, error) {
	text, err := io.ReadAll(io.LimitReader(part, maxField+1))
	if err != nil {
		return "", brokenBody(err)
	}
	if len(text) > maxField {
		return "", invalid("%s: longer than %d bytes", part.FormName(), maxField)
	}
	return string(text), schema.CheckText(part.FormName(), string(text))
}

// whole reports whether err is the end of a form or of a part. One that is cut off
// ends with an error that wraps io.EOF.
func whole(err error) bool { return err == io.EOF } //nolint:errorlint // see above

// lastPart is the file of a form. It returns io.EOF only if the form is complete
// and the file is its last field: a later field would have no effect.
type lastPart struct {
	part  io.Reader
	form  *multipart.Reader
	limit int64 // 0 is none
	read  int64
	err   error // why reading failed; nil at the end of a whole file
}

func (f *lastPart) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.part.Read(p)
	f.read += int64(n)
	if f.limit > 0 && f.read > f.limit {
		f.err = tooLarge("the file is over %d bytes: use files/stream/write", f.limit)
		return 0, f.err
	}
	if whole(err) {
		err = f.end()
	}
	if err != nil && !whole(err) {
		f.err = brokenBody(err)
		err = f.err
	}
	return n, err
}

// end returns io.EOF if the form ends here.
func (f *lastPart) end() error {
	next, err := f.form.NextPart()
	if err != nil {
		return err
	}
	return invalid("the field %q comes after file, which must be the last; nothing was written", shorten(next.FormName()))
}

func (h *handlers) ReadFile(ctx context.Context, req oapi.ReadFileRequestObject) (oapi.ReadFileResponseObject, error) {
	d, err := h.s.download(ctx, wrenn.SandboxID(req.ID), req.Body)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (h *handlers) StreamReadFile(ctx context.Context, req oapi.StreamReadFileRequestObject) (oapi.StreamReadFileResponseObject, error) {
	d, err := h.s.download(ctx, wrenn.SandboxID(req.ID), req.Body)
	if err != nil {
		return nil, err
	}
	d.flush = true
	return d, nil
}

// download opens a file of a sandbox; see begin.
func (s *Server) download(ctx context.Context, id wrenn.SandboxID, file *oapi.ReadFile) (*download, error) {
	content, err := s.service.ReadFile(ctx, callerOf(ctx), id, value(file.User), file.Path)
	if err != nil {
		return nil, err
	}
	return begin(file.Path, content)
}

// begin reads the first piece of a file that was opened: until then an error is an
// ordinary answer.
func begin(name string, content io.ReadCloser) (*download, error) {
	d := &download{name: path.Base(name), content: content, buffer: make([]byte, chunk)}
	d.have, d.err = d.content.Read(d.buffer)
	if d.have == 0 && d.err != nil && !errors.Is(d.err, io.EOF) {
		content.Close()
		return nil, d.err
	}
	return d, nil
}

// download is the answer with a file's content.
type download struct {
	name    string
	content io.ReadCloser
	flush   bool // send each piece at once

	buffer []byte
	have   int   // bytes of buffer that were read
	err    error // of that read
}

func (d *download) VisitReadFileResponse(w http.ResponseWriter) error       { return d.send(w) }
func (d *download) VisitStreamReadFileResponse(w http.ResponseWriter) error { return d.send(w) }
func (d *download) VisitReadVolumeFileResponse(w http.ResponseWriter) error { return d.send(w) }

// send returns an error if the content was not sent as a whole; the caller then
// breaks the connection.
func (d *download) send(w http.ResponseWriter) error {
	defer d.content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": d.name}))
	w.WriteHeader(http.StatusOK)
	out := &pieces{w: w, rec: recorderOf(w), flush: d.flush}
	if _, err := out.Write(d.buffer[:d.have]); err != nil {
		return err
	}
	if d.err == nil {
		_, d.err = io.CopyBuffer(out, d.content, d.buffer)
	}
	switch {
	case out.err != nil:
		return out.err
	case d.err != nil && !errors.Is(d.err, io.EOF):
		return fmt.Errorf("read the file: %w", d.err)
	}
	return nil
}

// pieces is a writer that records the error of sending.
type pieces struct {
	w     http.ResponseWriter
	rec   *recorder
	flush bool  // each piece at once
	err   error // why sending failed
}

func (p *pieces) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err == nil && p.flush {
		err = p.rec.flush()
	}
	if err != nil {
		p.err = fmt.Errorf("send the file: %w", err)
	}
	return n, p.err
}
