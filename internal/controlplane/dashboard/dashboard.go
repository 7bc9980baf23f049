// Package dashboard serves the dashboard: a page that calls the API as any other
// client does. Its source is in web/; "make dashboard" makes dist from it, which is
// committed, so that Go alone builds the control plane.
package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"mime"
	"net/http"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"
)

//go:embed dist
var dist embed.FS

// Below is the path of all files but the page itself.
const Below = "/ui/"

// file is a file of the dashboard as it is sent.
type file struct {
	media         string
	plain, packed []byte // packed is by gzip
	tag           string
}

// files are by name. They are compressed at the first request.
var files = sync.OnceValue(func() map[string]file {
	all := map[string]file{}
	entries, _ := dist.ReadDir("dist") // embedded
	for _, e := range entries {
		content, _ := dist.ReadFile(path.Join("dist", e.Name())) // embedded
		var packed bytes.Buffer
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression) // a valid level
		_, _ = w.Write(content)                                    // to memory
		_ = w.Close()
		sum := sha256.Sum256(content)
		all[e.Name()] = file{
			media: mime.TypeByExtension(path.Ext(e.Name())), plain: content, packed: packed.Bytes(),
			tag: base64.RawURLEncoding.EncodeToString(sum[:12]),
		}
	}
	return all
})

// Serve answers with the page for "/", and with a file for a path below Below.
func Serve(w http.ResponseWriter, r *http.Request) {
	name := "index.html"
	if r.URL.Path != "/" {
		name = strings.TrimPrefix(r.URL.Path, Below)
	}
	f, ok := files()[name]
	if !ok {
		http.Error(w, "there is no such file of the dashboard: load its page again", http.StatusNotFound)
		return
	}
	h := w.Header()
	protect(h, r.Host)
	h.Set("Content-Type", f.media)
	h.Set("Cache-Control", "no-cache") // a new server has a new page; the tag makes that cheap
	h.Set("Vary", "Accept-Encoding")
	content, tag := f.plain, f.tag
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		content, tag = f.packed, f.tag+"-gz"
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
}

// plainHost is a host that a Content-Security-Policy can name.
var plainHost = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]+)?$`)

// protect lets the page load its own files and connect to this server, and nothing
// else. Nothing is inline, and pages of sandboxes below /p/ are no source of scripts.
func protect(h http.Header, host string) {
	own := "'self'"
	if plainHost.MatchString(host) {
		own = host + Below
	}
	h.Set("Content-Security-Policy", "default-src 'none'; script-src "+own+"; style-src "+own+"; font-src "+own+"; img-src "+own+" data:; "+
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), clipboard-read=(self), clipboard-write=(self)")
}
