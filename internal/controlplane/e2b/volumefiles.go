package e2b

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// VolumeFiles is the part of Service that reaches files of volumes.
type VolumeFiles interface {
	VolumeToken(ctx context.Context, c service.Caller, id wrenn.VolumeID) (string, error)
	CheckVolumeToken(ctx context.Context, token, volume string) (service.Caller, error)
	StatVolumeFile(ctx context.Context, c service.Caller, volume, path string) (wrenn.VolumeEntry, error)
	ListVolumeFiles(ctx context.Context, c service.Caller, volume, path string, levels int) ([]wrenn.VolumeEntry, error)
	MakeVolumeDirectory(ctx context.Context, c service.Caller, volume, path string, a wrenn.VolumeAttributes, parents bool) (wrenn.VolumeEntry, error)
	SetVolumeFile(ctx context.Context, c service.Caller, volume, path string, a wrenn.VolumeAttributes) (wrenn.VolumeEntry, error)
	RemoveVolumeFile(ctx context.Context, c service.Caller, volume, path string) error
	ReadVolumeFile(ctx context.Context, c service.Caller, volume, path string) (io.ReadCloser, error)
	WriteVolumeFile(ctx context.Context, c service.Caller, volume, path string, w wrenn.VolumeWrite, content io.Reader) (wrenn.VolumeEntry, error)
}

// contentOperations are the functions for files of volumes, by the ids of operations.
func (s *Server) contentOperations() map[string]operation {
	return map[string]operation{
		"getVolumeEntry":        s.volumeEntry,
		"updateVolumeEntry":     s.updateVolumeEntry,
		"deleteVolumeEntry":     s.deleteVolumeEntry,
		"listVolumeDirectory":   s.volumeDirectory,
		"createVolumeDirectory": s.createVolumeDirectory,
		"readVolumeFile":        s.readVolumeFile,
		"writeVolumeFile":       s.writeVolumeFile,
	}
}

// content runs an operation on files of a volume, for a caller with the volume's token
// or with a key.
func (s *Server) content(op *contract.Operation, do operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller, leave, err := s.enterContent(op, r)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		defer leave()
		connection := http.NewResponseController(w)
		body := r.Body
		if err := check(op, r); err != nil {
			s.refuse(w, r, err)
			return
		}
		_ = connection.SetReadDeadline(time.Time{}) // when it passes, net/http ends the request's context
		if op.Media != contract.JSON && op.Media != "" {
			r.Body = io.NopCloser(&patient{body, connection}) // of any length
		}
		status, out, err := do(r, caller)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		if file, ok := out.(io.ReadCloser); ok {
			send(w, connection, file)
			return
		}
		answer(w, status, out)
	}
}

// enterContent is admission by the volume's token, which is tried first, or a key.
func (s *Server) enterContent(op *contract.Operation, r *http.Request) (c service.Caller, leave func(), err error) {
	secret := contract.SecretIn(r)
	c, err = s.service.CheckVolumeToken(r.Context(), secret, chi.URLParam(r, "volumeID"))
	switch {
	case err == nil:
		leave, err = s.admission.EnterTeam(c.Team)
		return c, leave, err
	case wrenn.CodeOf(err) != wrenn.Unauthenticated:
		return c, nil, err
	}
	c, leave, err = s.admission.Enter(r.Context(), r.RemoteAddr, secret)
	if err != nil {
		return c, nil, err
	}
	if err := c.Scopes.Check(op.Scope); err != nil {
		leave()
		return c, nil, err
	}
	return c, leave, nil
}

// patientWriter writes as long as the client takes something.
type patientWriter struct {
	io.Writer
	connection *http.ResponseController
}

func (p *patientWriter) Write(b []byte) (int, error) {
	_ = p.connection.SetWriteDeadline(time.Now().Add(stalledUpload))
	return p.Writer.Write(b)
}

// send answers with a file. It breaks the connection if the file was not sent as a whole.
func send(w http.ResponseWriter, connection *http.ResponseController, file io.ReadCloser) {
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(&patientWriter{w, connection}, file); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// place returns the volume and the path that a request names.
func place(r *http.Request) (volume, path string, query url.Values, err error) {
	query = r.URL.Query()
	if !query.Has("path") {
		return "", "", nil, invalid("path is needed")
	}
	return chi.URLParam(r, "volumeID"), query.Get("path"), query, nil
}

// attributesIn returns the attributes that a query asks for, which was checked.
func attributesIn(query url.Values) wrenn.VolumeAttributes {
	number := func(name string) *uint32 {
		n, err := strconv.ParseUint(query.Get(name), 10, 32)
		if err != nil {
			return nil
		}
		return new(uint32(n))
	}
	return wrenn.VolumeAttributes{Mode: number("mode"), UID: number("uid"), GID: number("gid")}
}

func entryOf(e wrenn.VolumeEntry) oapi.VolumeEntryStat {
	return oapi.VolumeEntryStat{
		Name: path.Base(e.Path), Type: oapi.VolumeEntryStatType(e.Type), Path: e.Path, Size: e.Size, Mode: e.Mode, UID: e.UID, GID: e.GID,
		Atime: e.AccessedAt, Mtime: e.ModifiedAt, Ctime: e.ChangedAt, Target: e.Target,
	}
}

func (s *Server) volumeEntry(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, _, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	e, err := s.service.StatVolumeFile(r.Context(), c, volume, path)
	return http.StatusOK, entryOf(e), err
}

func (s *Server) updateVolumeEntry(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, _, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	var change oapi.VolumeEntryChange
	if err := decode(r, &change); err != nil {
		return 0, nil, err
	}
	e, err := s.service.SetVolumeFile(r.Context(), c, volume, path, wrenn.VolumeAttributes{Mode: change.Mode, UID: change.UID, GID: change.GID})
	return http.StatusOK, entryOf(e), err
}

func (s *Server) deleteVolumeEntry(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, _, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.RemoveVolumeFile(r.Context(), c, volume, path)
}

func (s *Server) volumeDirectory(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, query, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	levels, _ := strconv.Atoi(query.Get("depth")) // the document has checked it
	list, err := s.service.ListVolumeFiles(r.Context(), c, volume, path, cmp.Or(levels, 1))
	out := []oapi.VolumeEntryStat{}
	for _, e := range list {
		out = append(out, entryOf(e))
	}
	return http.StatusOK, out, err
}

func (s *Server) createVolumeDirectory(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, query, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	e, err := s.service.MakeVolumeDirectory(r.Context(), c, volume, path, attributesIn(query), query.Get("force") == "true")
	return http.StatusCreated, entryOf(e), err
}

func (s *Server) readVolumeFile(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, _, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	file, err := s.service.ReadVolumeFile(r.Context(), c, volume, path)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, file, nil
}

func (s *Server) writeVolumeFile(r *http.Request, c service.Caller) (int, any, error) {
	volume, path, query, err := place(r)
	if err != nil {
		return 0, nil, err
	}
	e, err := s.service.WriteVolumeFile(r.Context(), c, volume, path, wrenn.VolumeWrite{
		VolumeAttributes: attributesIn(query), Parents: query.Get("force") == "true", NoReplace: query.Get("force") == "false",
	}, r.Body)
	if r.Context().Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, nil, invalid("the body broke off; nothing was written")
	}
	return http.StatusCreated, entryOf(e), err
}
