package filesystem

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"wrenn.dev"
	"wrenn.dev/internal/guest/account"
)

// copyBuffer is how much memory a transfer uses. More is not faster.
const copyBuffer = 128 << 10

// Files serves file contents over plain HTTP: GET, HEAD and POST of /files.
// Errors are JSON, {"code": <status>, "message": …}. A download that fails
// after its head was sent aborts the connection and never ends cleanly.
func (s *Service) Files() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", s.serveDownload)
	mux.HandleFunc("POST /files", s.serveUpload)
	mux.HandleFunc("/files", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "GET, HEAD, POST")
		s.refuse(w, r, http.StatusMethodNotAllowed, "files are read with GET and written with POST")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, http.StatusNotFound, "no such path: files are at /files")
	})
	return mux
}

// statuses are the HTTP statuses of error codes.
var statuses = map[wrenn.Code]int{
	wrenn.Invalid:          http.StatusBadRequest,
	wrenn.Unauthenticated:  http.StatusUnauthorized,
	wrenn.PermissionDenied: http.StatusForbidden,
	wrenn.NotFound:         http.StatusNotFound,
	wrenn.AlreadyExists:    http.StatusConflict,
	wrenn.DeadlineExceeded: http.StatusRequestTimeout,
	wrenn.NoSpace:          http.StatusInsufficientStorage,
}

// fail answers with an error. The answer must not have begun.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := cmp.Or(statuses[wrenn.CodeOf(err)], http.StatusInternalServerError)
	if status == http.StatusInternalServerError && r.Context().Err() == nil {
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "file request failed", slog.String("method", r.Method), slog.Any("err", err))
	}
	s.refuse(w, r, status, message(err))
}

func (s *Service) refuse(w http.ResponseWriter, r *http.Request, status int, message string) {
	writeJSON(r.Context(), s.log, w, status, map[string]any{"code": status, "message": message})
}

func writeJSON(ctx context.Context, log *slog.Logger, w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		log.LogAttrs(ctx, slog.LevelDebug, "answer not sent", slog.Any("err", err))
	}
}

// httpCaller returns the user of an HTTP request: the one in the query, which
// signed URLs have, else the one in the Authorization header.
func (s *Service) httpCaller(r *http.Request) (caller, error) {
	return s.caller(cmp.Or(r.URL.Query().Get("username"), account.NameFromHeader(r.Header)))
}

// abort breaks the connection, so that the client sees a broken transfer.
func (s *Service) abort(r *http.Request, path string, err error) {
	if r.Context().Err() == nil && !errors.Is(err, http.ErrAbortHandler) {
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "download failed", slog.String("path", path), slog.Any("err", err))
	}
	panic(http.ErrAbortHandler)
}
