package clienttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestOutside: the program of the SDK's example is built in a module of a user's, as
// docs/cli.md says, and gets no module but the SDK's own.
func TestOutside(t *testing.T) {
	sdk, err := filepath.Abs("../../client")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile(filepath.Join(sdk, "example_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source := strings.NewReplacer("package client_test", "package main", "func Example()", "func main()").Replace(string(example))
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off") // what the SDK needs was downloaded for this module
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("mod", "init", "example.com/program")
	run("mod", "edit", "-replace", "wrenn.dev/client="+sdk)
	run("mod", "tidy")
	run("build", "-o", os.DevNull, ".")
	want := []string{"example.com/program", "github.com/coder/websocket", "github.com/pelletier/go-toml/v2", "wrenn.dev/client"}
	if got := strings.Fields(run("list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")); !sameSet(got, want) {
		t.Errorf("the program has the modules %q; want %q", got, want)
	}
}

func sameSet(got, want []string) bool {
	set := map[string]bool{}
	for _, g := range got {
		set[g] = true
	}
	for _, w := range want {
		if !set[w] {
			return false
		}
	}
	return len(set) == len(want)
}
