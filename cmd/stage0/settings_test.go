package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// file makes a file with its directories, and returns its path.
func file(t *testing.T, path, text string) string {
	t.Helper()
	testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

func TestParseSetting(t *testing.T) {
	for line, want := range map[string][2]string{
		"net.ipv4.ip_forward = 1\n":             {"net/ipv4/ip_forward", "1"},
		"net/ipv4/conf/eth0.5/rp_filter=2":      {"net/ipv4/conf/eth0.5/rp_filter", "2"},
		"-kernel.core_pattern=|/bin/x -c=%c %p": {"kernel/core_pattern", "|/bin/x -c=%c %p"},
		"net.ipv4.conf.*.rp_filter=1":           {"net/ipv4/conf/*/rp_filter", "1"},
		"vm.swappiness =":                       {"vm/swappiness", ""},
		"# vm.swappiness=1":                     {},
		"; x=1":                                 {},
		" \t\n":                                 {},
		"=1":                                    {},
		"vm.swappiness":                         {},
	} {
		name, value, ok := parseSetting(line)
		if got := [2]string{name, value}; got != want && ok || ok != (want[0] != "") {
			t.Errorf("parseSetting(%q) = %q, %v, want %q", line, got, ok, want)
		}
	}
}

func TestSet(t *testing.T) {
	root := t.TempDir()
	dir := root + "/"
	for _, name := range []string{"conf/eth0/rp", "conf/lo/rp", "other/rp"} {
		file(t, dir+name, "0\n")
	}
	set(dir, "conf/*/rp", "1")
	set(dir, "conf/none/rp", "1") // the kernel does not have it
	set(dir, "n*/rp", "1")
	got := map[string]string{}
	for _, path := range paths(t, root) {
		if text, err := os.ReadFile(dir + path); err == nil {
			got[path] = string(text)
		}
	}
	want := map[string]string{"conf/eth0/rp": "1\n", "conf/lo/rp": "1\n", "other/rp": "0\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestGlob(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"20-b.conf", "10-a.conf", "README", "9.conf/x"} {
		file(t, filepath.Join(dir, name), "")
	}
	for pattern, want := range map[string][]string{
		"/*.conf":   {"/10-a.conf", "/20-b.conf", "/9.conf"},
		"/*/?":      {"/9.conf/x"},
		"/absent/x": {"/absent/x"},
		"/absent/*": nil,
		"/[":        nil,
	} {
		var paths []string
		for _, name := range want {
			paths = append(paths, dir+name)
		}
		if diff := cmp.Diff(paths, glob(dir+pattern)); diff != "" {
			t.Errorf("glob(%q) (-want +got):\n%s", pattern, diff)
		}
	}
}
