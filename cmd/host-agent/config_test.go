package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/certs/certstest"
	"wrenn.dev/internal/run"
)

// read reads text as the file of --config.
func read(t *testing.T, text string) (config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "host-agent.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return readConfig(path, "/var/lib/wrenn")
}

func TestConfigurationIsRefused(t *testing.T) {
	for name, tc := range map[string]struct{ text, says string }{
		"unknown key":             {"stat = '/x'", "stat"},
		"unknown key in a table":  {"[limits]\nsandbox = 1", "sandbox"},
		"unknown table":           {"[limit]\nsandboxes = 1", "limit"},
		"no TOML":                 {"listen = ", "listen"},
		"twice":                   {"run = '/a'\nrun = '/b'", "run"},
		"wrong type":              {"[limits]\nsandboxes = 'many'", "sandboxes"},
		"driver":                  {"[driver]\nname = 'xen'", "auto, firecracker, qemu-kvm or qemu"},
		"little code":             {"[driver]\nqemu_code_mb = 15", "16 to 1024"},
		"much code":               {"[driver]\nqemu_code_mb = 1025", "16 to 1024"},
		"negative code":           {"[driver]\nqemu_code_mb = -64", "driver.qemu_code_mb"},
		"log format":              {"[log]\nformat = 'xml'", "text or json"},
		"log level":               {"[log]\nlevel = 'loud'", "loud"},
		"relative directory":      {"state = 'x'", "absolute"},
		"metrics":                 {"metrics = 'here'", "or off"},
		"range that is none":      {"[network]\nrange = '10.0.0.0'", "10.0.0.0"},
		"range of another kind":   {"[network]\nrange = 'fd00::/64'", "IPv4"},
		"range with host bits":    {"[network]\nrange = '10.1.0.1/16'", "10.1.0.1/16"},
		"resolver":                {"[network]\nresolvers = ['::1']", "resolver ::1"},
		"closed network":          {"[network]\nclosed = ['10.0.0.1/8']", "10.0.0.1/8"},
		"prefix":                  {"[network]\nprefix = 'much-too-long'", "much-too-long"},
		"more ready than allowed": {"[network]\nready = 3\nmax = 2", "ready"},
		"negative limit":          {"[limits]\nsandboxes = -1", "limits.sandboxes"},
		"limit below none":        {"[limits]\nmemory_mb = -2", "limits.memory_mb"},
		"negative pool size":      {"[ready]\nmachines = -1", "ready.machines"},
		"endless pool size":       {"[ready]\nmachines = 101", "ready.machines"},
		"open to others":          {"listen = '0.0.0.0:49980'", "mutual TLS"},
		"half of mutual TLS":      {"listen = '0.0.0.0:49980'\n[tls]\nkey = '/x'", "all of certificate, key and client_ca"},
		"store":                   {"[store]\nurl = 'http://x'", "s3://BUCKET"},
		"secret in a store":       {"[store]\nurl = 's3://a:b@x'", "environment"},
		"missing certificate":     {"listen = '0.0.0.0:49980'\n[tls]\nkey = '/x'\ncertificate = '/x'\nclient_ca = '/x'", "/x"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(t, tc.text); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error with %q", err, tc.says)
			}
		})
	}
	if _, err := readConfig("/no/such/file", "/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestConfigurationDefaults(t *testing.T) {
	for name, c := range map[string]func() (config, error){
		"no file":    func() (config, error) { return readConfig("", "/s") },
		"empty file": func() (config, error) { c, err := read(t, ""); c.State = "/s"; return c, err },
	} {
		got, err := c()
		if err != nil {
			t.Fatal(err)
		}
		if got.State != "/s" || got.Listen != "unix:/run/wrenn/agent.sock" || got.Metrics != "127.0.0.1:49981" ||
			got.Network.Range.String() != "10.191.0.0/16" || got.Network.Ready != 4 || got.host(nil, nil).Driver.QEMUCodeMiB != 96 || got.Limits.MemoryMB <= 0 || got.Limits.DiskFreeMB != 1024 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	got, err := read(t, "run = '/run/other'\n[limits]\nmemory_mb = -1\ndisk_free_mb = -1")
	if err != nil {
		t.Fatal(err)
	}
	if got.Listen != "unix:/run/other/agent.sock" {
		t.Errorf("the socket is %s", got.Listen)
	}
	if limits := got.host(nil, nil).Limits; limits.MemoryMiB != 0 || limits.DiskFreeMiB != 0 {
		t.Errorf("-1 is %+v, want no limits", limits)
	}
}

// TestPrintedConfigurationIsOne: what --check-config prints can be used as a file, and means the same.
func TestPrintedConfigurationIsOne(t *testing.T) {
	files := certstest.New(t).Issue(t, certstest.Want{})
	dir := t.TempDir()
	path := filepath.Join(dir, "a.toml")
	text := "listen = '0.0.0.0:49980'\n[tls]\ncertificate = '" + files.Certificate + "'\nkey = '" + files.Key + "'\nclient_ca = '" + files.CA + "'\n[log]\nlevel = 'debug'\nformat = 'json'\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := command(t.Context(), []string{"serve", "--config", path, "--check-config"}, streams{out: &out, err: &errs}); err != nil {
		t.Fatal(err)
	}
	first, err := readConfig(path, "/var/lib/wrenn")
	if err != nil {
		t.Fatal(err)
	}
	again, err := read(t, out.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, &out)
	}
	if diff := cmp.Diff(first, again, comparePrefixes); diff != "" {
		t.Errorf("again (-want +got):\n%s", diff)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	if secret := strings.Split(string(key), "\n")[1]; strings.Contains(out.String(), secret) {
		t.Errorf("it prints the key:\n%s", &out)
	}
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestWrongCommandLines(t *testing.T) {
	for _, args := range [][]string{{"dance"}, {"serve", "--no-such-flag"}, {"serve", "now"}} {
		var out, errs bytes.Buffer
		if err := command(t.Context(), args, streams{out: &out, err: &errs}); !errors.Is(err, run.ErrUsage) {
			t.Errorf("host-agent %v = %v, want ErrUsage", args, err)
		}
	}
	var out, errs bytes.Buffer
	err := command(t.Context(), []string{"serve", "--config", "/no/such/file", "--check-config"}, streams{out: &out, err: &errs})
	if err == nil || errors.Is(err, run.ErrUsage) || out.Len() > 0 {
		t.Errorf("a file that is not there: %v, printed %q", err, &out)
	}
}

// TestPackagedFile: the file that is installed is a configuration, and the defaults that it tells are the program's.
func TestPackagedFile(t *testing.T) {
	text, err := os.ReadFile("../../packaging/host-agent.toml")
	if err != nil {
		t.Fatal(err)
	}
	silent, err := read(t, string(text))
	if err != nil {
		t.Fatal(err)
	}
	told := regexp.MustCompile(`(?m)^#(\w)`).ReplaceAllString(string(text), "$1")
	spoken, err := read(t, told)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(silent, spoken, comparePrefixes); diff != "" {
		t.Errorf("the file tells other defaults (-program +file):\n%s", diff)
	}
	var all bytes.Buffer
	if err := silent.print(&all); err != nil {
		t.Fatal(err)
	}
	for _, key := range regexp.MustCompile(`(?m)^\w+ =`).FindAllString(all.String(), -1) {
		if !regexp.MustCompile(`(?m)^(# ?)?` + key).MatchString(string(text)) {
			t.Errorf("the file does not tell %q", strings.TrimSuffix(key, " ="))
		}
	}
}

func TestErrorsOfConfigurationAreForPeople(t *testing.T) {
	_, err := read(t, "[driver]\nname = 'xen'")
	if wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("%v is no Invalid", err)
	}
	_, err = read(t, "run = '/a'\n[limits]\nsandbox = 1")
	if err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("%v does not show the line", err)
	}
}

func TestMemoryForMachines(t *testing.T) {
	for total, want := range map[int]int{1024: 512, 2048: 1408, 16384: 14848, 262144: 245248} {
		if got := memoryForMachines(total); got != want {
			t.Errorf("of %d MiB machines get %d, want %d", total, got, want)
		}
	}
}
