//go:build root && clients

package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wrenn.dev/internal/doctest"
	"wrenn.dev/internal/livetest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestPython generates a client by openapi-python-client and runs try.py with it. A
// warning of the generator is a failure: a part of the contract would be missing.
func TestPython(t *testing.T) {
	server, generator := livetest.New(t), installed(t, "python/bin/openapi-python-client")
	dir := t.TempDir()
	settings, err := filepath.Abs("python.yaml")
	testkit.Must(t, err)
	program, err := filepath.Abs("try.py")
	testkit.Must(t, err)
	run(t, dir, nil, generator, "generate", "--url", server.URL+"/openapi.yaml", "--config", settings, "--meta", "none", "--output-path", "generated", "--fail-on-warning")
	run(t, dir, []string{"WRENN_API_URL=" + server.URL, "WRENN_API_KEY=" + server.Key, "PYTHONPATH=" + dir, "PYTHONDONTWRITEBYTECODE=1"},
		filepath.Join(filepath.Dir(generator), "python"), program)
}

// TestTypeScript generates types by openapi-typescript, compiles try.ts with them and
// openapi-fetch, and runs it.
func TestTypeScript(t *testing.T) {
	server, modules := livetest.New(t), installed(t, "typescript/node_modules")
	dir := t.TempDir()
	program, err := os.ReadFile("try.ts")
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "try.ts"), program, 0o600))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"type": "module"}`), 0o600))
	testkit.Must(t, os.Symlink(modules, filepath.Join(dir, "node_modules")))
	run(t, dir, nil, filepath.Join(modules, ".bin/openapi-typescript"), server.URL+"/openapi.yaml", "--output", "contract.d.ts")
	run(t, dir, nil, filepath.Join(modules, ".bin/tsc"), "--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "try.ts")
	run(t, dir, []string{"WRENN_API_URL=" + server.URL, "WRENN_API_KEY=" + server.Key}, testkit.Program(t, "node"), "try.js")
}

// TestRequests runs the requests of docs/api.md with curl.
func TestRequests(t *testing.T) {
	testkit.Program(t, "curl")
	script := ""
	for _, p := range doctest.Pages(t) {
		for _, b := range p.Blocks {
			if p.File == "docs/api.md" && strings.Contains(b.Text.Text, "request() {") {
				script = b.Text.Text
			}
		}
	}
	address := regexp.MustCompile(`(?m)^api=\S+`)
	if !address.MatchString(script) {
		t.Fatal("docs/api.md has no requests")
	}
	server := livetest.New(t)
	out := run(t, t.TempDir(), []string{"WRENN_API_KEY=" + server.Key}, testkit.Program(t, "bash"), "-euo", "pipefail", "-c", address.ReplaceAllString(script, "api="+server.URL))
	for _, want := range []string{`"metadata":{"user":"alice"}`, `"exit_code":0`, "hello", `"errors":[]`} {
		if !strings.Contains(out, want) {
			t.Errorf("the requests did not answer %s:\n%s", want, out)
		}
	}
}

// installed returns a file of what scripts/clients.sh has installed.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../.cache/clients", name))
	testkit.Must(t, err)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("run this by scripts/clients.sh, which installs the generators: %v", err)
	}
	return path
}

// run runs a program to its end and returns what it printed.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, out)
	}
	return string(out)
}
