// Package settings finds the server and the API key that a user's programs use: in
// environment variables, and in the configuration file that the command wrenn writes.
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// DefaultURL is where "wrenn up" listens by default.
const DefaultURL = "http://127.0.0.1:8080"

// Server is the address of a server and an API key for it.
type Server struct {
	URL string `toml:"url"`
	Key string `toml:"key"` // "" if none is known
}

// File is the content of the configuration file: the server in use, and by their names
// those that "wrenn login" has kept.
type File struct {
	URL      string            `toml:"url"`
	Key      string            `toml:"key"`
	Contexts map[string]Server `toml:"contexts,omitempty"`
}

// InUse returns the server that the file names, which has no URL in an empty file.
func (f File) InUse() Server { return Server{URL: f.URL, Key: f.Key} }

// Path returns where the configuration file is unless the user names another one. The
// variables that it needs are those of getenv, such as os.Getenv. The file may not exist.
func Path(getenv func(string) string) (string, error) {
	base := getenv("XDG_CONFIG_HOME")
	if base == "" {
		home := getenv("HOME")
		if home == "" {
			return "", errors.New("neither HOME nor XDG_CONFIG_HOME is set: name the configuration file by WRENN_CONFIG")
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "wrenn", "config.toml"), nil
}

// Read returns the content of a configuration file. A missing one is empty.
func Read(path string) (File, error) {
	var out File
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("read the configuration: %w", err)
	}
	if err := toml.Unmarshal(text, &out); err != nil {
		return out, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// NoContextError is the error for a context that the configuration file does not have.
type NoContextError struct{ Name string }

func (e *NoContextError) Error() string {
	return fmt.Sprintf("there is no context %q: wrenn context list shows them, wrenn login makes one", e.Name)
}

// Server returns the server to use, and the key for it, which is "" if none is known.
// context names one of the file's; url is the address that the user asked for; each may
// be "". Other variables are those of getenv.
//
// A key is sent only to the server that it was given for: that of the file to the file's,
// and E2B_API_KEY, which may be that of a cloud, to the address in E2B_API_URL, or to
// this machine if nothing else is configured.
func (f File) Server(context, url string, getenv func(string) string) (Server, error) {
	own := f.InUse()
	if context != "" {
		chosen, ok := f.Contexts[context]
		if !ok {
			return Server{}, &NoContextError{context}
		}
		if url == "" || same(url, chosen.URL) {
			return chosen, nil
		}
		own = chosen
	}
	e2bURL := getenv("E2B_API_URL")
	configured := cmp.Or(url, own.URL, e2bURL)
	out := Server{URL: cmp.Or(configured, DefaultURL), Key: getenv("WRENN_API_KEY")}
	if out.Key == "" && same(out.URL, own.URL) {
		out.Key = own.Key
	}
	if out.Key == "" && (configured == "" || same(out.URL, e2bURL)) {
		out.Key = getenv("E2B_API_KEY")
	}
	return out, nil
}

// same reports whether two addresses are equal but for a slash at the end.
func same(a, b string) bool { return strings.TrimRight(a, "/") == strings.TrimRight(b, "/") }

// FromEnvironment returns the server that the command wrenn uses with these variables
// and without flags, and the key for it, which is "" if none is known.
func FromEnvironment(getenv func(string) string) (Server, error) {
	path := getenv("WRENN_CONFIG")
	if path == "" {
		var err error
		if path, err = Path(getenv); err != nil && getenv("WRENN_API_URL") == "" {
			return Server{}, err
		}
	}
	var file File
	if path != "" {
		var err error
		if file, err = Read(path); err != nil {
			return Server{}, err
		}
	}
	return file.Server(getenv("WRENN_CONTEXT"), getenv("WRENN_API_URL"), getenv)
}
