package api

import (
	"embed"
	"mime"
	"net/http"
	"path"

	"github.com/go-chi/chi/v5"
)

// pages has Swagger UI, see swagger/README.md, and the page that starts it.
//
//go:embed swagger
var pages embed.FS

// document returns the handler that answers with a contract.
func document(text []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(text)
	}
}

// docs answers with the page that displays the contract.
func (s *Server) docs(w http.ResponseWriter, r *http.Request) { s.page(w, r, "index.html") }

func (s *Server) docsFile(w http.ResponseWriter, r *http.Request) {
	s.page(w, r, chi.URLParam(r, "file"))
}

// docsPolicy lets the page load from this server and connect to it, and nothing
// else. Swagger UI's styles and icons are inline.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *Server) page(w http.ResponseWriter, r *http.Request, name string) {
	content, err := pages.ReadFile(path.Join("swagger", path.Base("/"+name)))
	if err != nil {
		s.refuse(w, r, errNoRoute)
		return
	}
	w.Header().Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
	w.Header().Set("Content-Security-Policy", docsPolicy)
	w.Header().Set("Cache-Control", "no-cache") // a new server has a new page
	_, _ = w.Write(content)
}
