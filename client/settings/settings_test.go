package settings_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/client/settings"
)

const file = `url = 'http://here/'
key = 'of here'
[contexts.there]
url = 'https://there'
key = 'of there'
`

// A key is sent only to the server that it was given for.
func TestFromEnvironment(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, ".config/wrenn/config.toml"), file)
	write(t, filepath.Join(home, "other/wrenn/config.toml"), "url = 'http://other'\nkey = 'of other'\n")
	write(t, filepath.Join(home, "named.toml"), "url = 'http://named'\nkey = 'of named'\n")
	for _, c := range []struct {
		env  string
		want settings.Server
	}{
		{"", settings.Server{URL: "http://here/", Key: "of here"}},
		{"WRENN_API_KEY=mine", settings.Server{URL: "http://here/", Key: "mine"}},
		{"WRENN_API_URL=http://here", settings.Server{URL: "http://here", Key: "of here"}},
		{"WRENN_API_URL=http://elsewhere", settings.Server{URL: "http://elsewhere"}},
		{"WRENN_API_URL=http://elsewhere WRENN_API_KEY=mine", settings.Server{URL: "http://elsewhere", Key: "mine"}},
		{"WRENN_API_URL=http://elsewhere E2B_API_KEY=cloud", settings.Server{URL: "http://elsewhere"}},
		{"WRENN_API_URL=http://e2b E2B_API_URL=http://e2b/ E2B_API_KEY=cloud", settings.Server{URL: "http://e2b", Key: "cloud"}},
		{"WRENN_CONTEXT=there", settings.Server{URL: "https://there", Key: "of there"}},
		{"WRENN_CONTEXT=there WRENN_API_URL=https://there/", settings.Server{URL: "https://there", Key: "of there"}},
		{"WRENN_CONTEXT=there WRENN_API_URL=http://here/", settings.Server{URL: "http://here/"}},
		{"XDG_CONFIG_HOME=" + home + "/other", settings.Server{URL: "http://other", Key: "of other"}},
		{"WRENN_CONFIG=" + home + "/named.toml", settings.Server{URL: "http://named", Key: "of named"}},
		{"WRENN_CONFIG=" + home + "/missing.toml", settings.Server{URL: settings.DefaultURL}},
		{"WRENN_CONFIG=" + home + "/missing.toml E2B_API_KEY=local", settings.Server{URL: settings.DefaultURL, Key: "local"}},
		{"WRENN_CONFIG=" + home + "/missing.toml E2B_API_URL=http://e2b E2B_API_KEY=cloud", settings.Server{URL: "http://e2b", Key: "cloud"}},
	} {
		if got, err := settings.FromEnvironment(environment("HOME=" + home + " " + c.env)); got != c.want || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", c.env, got, err, c.want)
		}
	}
	// A program of a service has no home; its unit sets the address.
	got, err := settings.FromEnvironment(environment("WRENN_API_URL=http://a WRENN_API_KEY=b"))
	if want := (settings.Server{URL: "http://a", Key: "b"}); got != want || err != nil {
		t.Errorf("without a home: %+v, %v; want %+v", got, err, want)
	}
}

func TestFromEnvironmentFails(t *testing.T) {
	home := t.TempDir()
	write(t, filepath.Join(home, "broken.toml"), "url = ")
	for env, want := range map[string]string{
		"": "name the configuration file by WRENN_CONFIG",
		"HOME=" + home + " WRENN_CONTEXT=nowhere": `no context "nowhere": wrenn context list shows them`,
		"WRENN_CONFIG=" + home + "/broken.toml":   "broken.toml",
		"WRENN_CONFIG=" + home:                    "read the configuration",
	} {
		if got, err := settings.FromEnvironment(environment(env)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want an error with %q", env, got, err, want)
		}
	}
	_, err := settings.File{}.Server("nowhere", "", environment(""))
	if missing, ok := errors.AsType[*settings.NoContextError](err); !ok || missing.Name != "nowhere" {
		t.Errorf("a context that does not exist: %v", err)
	}
}

// environment returns the function that finds the variables in a line NAME=VALUE ….
func environment(line string) func(string) string {
	variables := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(word, "=")
		variables[name] = value
	}
	return func(name string) string { return variables[name] }
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
