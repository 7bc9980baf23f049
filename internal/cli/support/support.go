// Package support writes bundles for support requests: text files in a compressed tar
// archive, from which secrets are removed.
package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"time"
)

const (
	// maxPart bounds one file of a bundle; of a log the end is kept.
	maxPart = 2 << 20
	// maxLine bounds a line. The rest of a longer one is left out: a secret may be cut in two.
	maxLine = 64 << 10

	removed  = "[removed]"
	mode     = 0o600
	errorsIn = "errors.txt"
)

// Part is a file of a bundle.
type Part struct {
	Name string // a relative path
	// Content returns the content. An error does not end the bundle, which then has its
	// text, and what was returned beside it.
	Content func(context.Context) ([]byte, error)
}

// File is a part with the end of a file. A missing file is no error.
func File(name, source string) Part {
	return Part{name, func(context.Context) ([]byte, error) {
		text, err := tail(source)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return text, err
	}}
}

// tail returns the last maxPart bytes of a file, from a line's beginning on.
func tail(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	begin := max(0, info.Size()-maxPart)
	text, err := io.ReadAll(io.NewSectionReader(f, begin, maxPart))
	if begin > 0 {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return text, err
}

// Write writes a bundle whose files are below the directory. Empty parts are left out.
func Write(ctx context.Context, out io.Writer, directory string, parts []Part, now time.Time) error {
	packed := gzip.NewWriter(out)
	archive := tar.NewWriter(packed)
	var failed bytes.Buffer
	parts = append(slices.Clip(parts), Part{errorsIn, func(context.Context) ([]byte, error) { return failed.Bytes(), nil }}) // the last one
	for _, part := range parts {
		text, err := part.Content(ctx)
		if err != nil {
			fmt.Fprintf(&failed, "%s: %v\n", part.Name, err)
		}
		if len(text) > maxPart {
			text = text[:maxPart]
		}
		if text = Redact(text); len(text) == 0 {
			continue
		}
		err = archive.WriteHeader(&tar.Header{Name: path.Join(directory, part.Name), Mode: mode, Size: int64(len(text)), ModTime: now})
		if err == nil {
			_, err = archive.Write(text)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), packed.Close())
}

// rule removes secrets of one form.
type rule struct {
	form *regexp.Regexp
	by   string
}

// rules are what is removed. Logs of Wrenn have no secrets; these are for what users wrote
// into configurations, and for what other programs log.
var rules = []rule{
	{regexp.MustCompile(`://[^/\s@"']*@`), "://" + removed + "@"},
	{regexp.MustCompile(`(?i)\b(bearer|basic)[ \t]+\S+`), "$1 " + removed},
	{regexp.MustCompile(`\be2b_\w+`), removed},
	// A line of a TOML file. In logs, key= is the id of a key.
	{regexp.MustCompile(`(?m)^([ \t]*key[ \t]*=[ \t]*).*`), "${1}" + removed},
	// A setting, a variable or a header whose name says that it is a secret; the names of
	// files with secrets are removed as well.
	{regexp.MustCompile(`(?i)((?:passw|secret|token|credential|authorization|cookie|private|api[_-]?key|access[_-]?key)[a-z0-9_.-]*["']?[ \t]*[=:][ \t]*).*`), "${1}" + removed},
	// A text that is too long for a name: hexadecimal digits, or 256 bits in base64.
	{regexp.MustCompile(`\b[0-9a-fA-F]{32,}\b|\b[A-Za-z0-9_-]{43,}|\b[A-Za-z0-9+/]{43,}={1,2}`), removed},
}

var (
	privateKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`)
	privateEnd = regexp.MustCompile(`-----END [A-Z ]*PRIVATE KEY-----`)
	dashes     = []byte("-----") // that both have
)

// Redact removes secrets from a text.
func Redact(text []byte) []byte {
	text = withoutKeys(text)
	for _, r := range rules {
		text = r.form.ReplaceAll(text, []byte(r.by))
	}
	return text
}

// withoutKeys replaces the lines of private keys, and cuts long lines.
func withoutKeys(text []byte) []byte {
	var out bytes.Buffer
	inKey := false
	for line := range bytes.Lines(text) {
		inKey = inKey || bytes.Contains(line, dashes) && privateKey.Match(line)
		switch {
		case inKey:
			inKey = !bytes.Contains(line, dashes) || !privateEnd.Match(line)
			out.WriteString(removed + "\n")
		case len(line) > maxLine:
			out.Write(line[:maxLine])
			out.WriteString(" [cut]\n")
		default:
			out.Write(line)
		}
	}
	return out.Bytes()
}
