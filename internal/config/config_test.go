package config_test

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/config"
	"wrenn.dev/internal/testkit"
)

type settings struct {
	Name   string `toml:"name"`
	Listen string `toml:"listen"`
	Limits limits `toml:"limits"`
}

type limits struct {
	Count int `toml:"count"`
}

func (s *settings) Complete(getenv func(string) string) error {
	s.Name = cmp.Or(getenv("NAME"), s.Name)
	s.Listen = cmp.Or(s.Listen, s.Name+":80")
	if s.Name == "broken" {
		return errors.New("no machine")
	}
	return nil
}

func (s *settings) Check(problems *config.Problems) {
	if s.Limits.Count < 1 {
		problems.Addf("limits.count: must be above 0")
	}
	if !strings.Contains(s.Listen, ":") {
		problems.Add(errors.New("listen: no port"))
	}
	problems.Add(nil)
}

var defaults = settings{Name: "a", Limits: limits{Count: 1}}

func load(t *testing.T, text string, environ map[string]string) (settings, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.toml")
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o600))
	return config.Load[settings](path, defaults, func(name string) string { return environ[name] })
}

func TestLoad(t *testing.T) {
	for name, tt := range map[string]struct {
		text    string
		environ map[string]string
		want    settings
	}{
		"defaults":         {"", nil, settings{"a", "a:80", limits{1}}},
		"the file wins":    {"name = 'b'\n[limits]\ncount = 3", nil, settings{"b", "b:80", limits{3}}},
		"environment wins": {"name = 'b'\nlisten = ':1'", map[string]string{"NAME": "c"}, settings{"c", ":1", limits{1}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := load(t, tt.text, tt.environ); err != nil || got != tt.want {
				t.Errorf("Load() = %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
	if got, err := config.Load[settings]("", defaults, os.Getenv); err != nil || got.Name != "a" {
		t.Errorf("without a file: %+v, %v", got, err)
	}
}

// TestAllErrorsAtOnce: keys that are unknown and values that are wrong are reported together, with the file.
func TestAllErrorsAtOnce(t *testing.T) {
	_, err := load(t, "nam = 'b'\nlisten = 'x'\n[limits]\ncount = 0\ncounts = 1", nil)
	testkit.WantCode(t, err, wrenn.Invalid, "x.toml", "line 1: unknown key nam", "line 5: unknown key limits.counts", "limits.count: must be above 0", "listen: no port")
}

func TestLoadFails(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"not TOML":     {"name = ", "name"},
		"wrong type":   {"[limits]\ncount = 'many'", "count"},
		"key repeated": {"name = 'a'\nname = 'b'", "name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, tt.text, nil)
			testkit.WantCode(t, err, wrenn.Invalid, tt.want)
		})
	}
	for _, text := range []string{"name = 's3cr3t'\nname = 's3cr3t'", "nam = 's3cr3t'", "[limits]\ncount = 's3cr3t'", "name = 's3cr3t"} {
		if _, err := load(t, text, nil); err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%q: %v: a value must not be shown, it may be a secret", text, err)
		}
	}
	if _, err := config.Load[settings]("/no/such/file", defaults, os.Getenv); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := load(t, "name = 'broken'", nil); err == nil || !strings.Contains(err.Error(), "no machine") {
		t.Errorf("Complete's error: %v", err)
	}
}
