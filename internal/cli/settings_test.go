package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// parseUp parses the command line with a file of flags.
func parseUp(t *testing.T, text string, args ...string) (upCommand, error) {
	t.Helper()
	var line commandLine
	parser, err := kong.New(&line, kong.Name("wrenn"), kong.Configuration(loadFlags), kong.Exit(func(int) { t.Error("the parser exits") }))
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/up.toml"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(append([]string{"up", "--settings", file}, args...))
	return line.Up, err
}

// The file of the package has flags of up, each with its default where it says so.
func TestPackagedSettings(t *testing.T) {
	text, err := os.ReadFile("../../packaging/up.toml")
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := parseUp(t, string(text))
	if err != nil {
		t.Fatal(err)
	}
	said, err := parseUp(t, regexp.MustCompile(`(?m)^#([a-z])`).ReplaceAllString(string(text), "$1"))
	if said.State != defaults.State || said.Listen != defaults.Listen || said.PlainHTTP != defaults.PlainHTTP || said.Driver != defaults.Driver || err != nil {
		t.Errorf("what the file calls defaults: %+v, %v; want %+v", said, err, defaults)
	}
	all, err := parseUp(t, regexp.MustCompile(`(?m)^# ([a-z-]+ = )`).ReplaceAllString(string(text), "$1"))
	if err != nil || all.Domain == "" || all.DomainListen == "" || all.ACME == "" || all.NetRange == "" || all.DatabaseURL == "" {
		t.Errorf("all lines in effect: %+v, %v", all, err)
	}
}

func TestSettings(t *testing.T) {
	got, err := parseUp(t, "listen = \"127.0.0.1:1\"\nplain-http = true\ndriver = \"qemu\"\nwebhook-allow = [\"10.0.0.0/8\", \"127.0.0.1/32\"]", "--listen", "127.0.0.1:2")
	if err != nil || got.Listen != "127.0.0.1:2" || !got.PlainHTTP || got.Driver != "qemu" || len(got.WebhookAllow) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	for text, want := range map[string]string{
		"install = true": "install", "output = \"json\"": "output", "driver = \"xen\"": "driver", "x = ": "settings",
	} {
		if _, err := parseUp(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What --install would ignore is refused; what is of all commands is not.
func TestInstallTakesNoFlags(t *testing.T) {
	for args, want := range map[string]string{
		"up --install --listen 127.0.0.1:1": "write listen into /etc/wrenn/up.toml",
		"up --install --uninstall":          "can't be used together",
		"-o json up --install":              "",
		"up --uninstall --state /srv/wrenn": "",
	} {
		var line commandLine
		parser, err := kong.New(&line, kong.Name("wrenn"), kong.Configuration(loadFlags))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(strings.Fields(args)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("wrenn %s: %v, want %q", args, err, want)
		}
	}
}
