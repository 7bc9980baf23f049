//go:build root

package livetest_test

import (
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/filelock"
	"wrenn.dev/internal/testkit"
)

// firstBuild is the commit that counts as the previous build until there is a release. It
// is from before epochs, stored templates, webhooks and the use of teams.
const firstBuild = "ead7562f75cb0bff39b6bcb623afaf8f1cbd2f27"

// build has the programs of one build.
type build struct{ controlPlane, host string }

// builds returns the previous build and this one. The previous one is the newest
// release that this commit is after, else firstBuild: its programs are made once, from
// the repository's history, and kept in .cache. In a clone without that history this build
// stands for it, too: then the test has nothing to say about versions.
func builds(t *testing.T) (old, now build) {
	t.Helper()
	root, err := filepath.Abs("../..")
	testkit.Must(t, err)
	now = compile(t, root, t.TempDir())
	tag := exec.CommandContext(t.Context(), "git", "-C", root, "describe", "--tags", "--abbrev=0", "--match=v[0-9]*", "HEAD^")
	release, _ := tag.Output() // it fails if there is none
	commit := cmp.Or(strings.TrimSpace(string(release)), firstBuild)
	if err := exec.CommandContext(t.Context(), "git", "-C", root, "cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		t.Logf("this build is tested with itself: the previous one, commit %s, is not in this clone: git fetch --tags --unshallow", commit)
		return now, now
	}
	return previous(t, root, commit), now
}

// previous returns the programs of an earlier commit.
func previous(t *testing.T, root, commit string) build {
	t.Helper()
	dir := filepath.Join(root, ".cache", "previous")
	testkit.Must(t, os.MkdirAll(dir, 0o755))
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	testkit.Must(t, err)
	defer lock.Close()
	testkit.Must(t, filelock.Lock(t.Context(), lock, nil)) // another run of the test may be making them
	made := filepath.Join(dir, commit)
	if _, err := os.Stat(made); err == nil {
		return buildIn(made)
	}
	source, out := t.TempDir(), made+".new"
	testkit.Must(t, os.RemoveAll(out))
	command(t, root, "sh", "-c", `git archive --format=tar "$1" | tar -x -C "$2"`, "sh", commit, source)
	addHost(t, root, source)
	compile(t, source, out)
	testkit.Must(t, os.Rename(out, made))
	return buildIn(made)
}

// addHost gives a build that is older than it the program fakehost.
func addHost(t *testing.T, root, source string) {
	t.Helper()
	const name = "internal/livetest/fakehost"
	if _, err := os.Stat(filepath.Join(source, name)); err == nil {
		return
	}
	content, err := os.ReadFile(filepath.Join(root, name, "main.go"))
	testkit.Must(t, err)
	module := strings.TrimSpace(command(t, source, "go", "list", "-m"))
	content = bytes.ReplaceAll(content, []byte(`"wrenn.dev`), []byte(`"`+module))
	testkit.Must(t, os.MkdirAll(filepath.Join(source, name), 0o755))
	testkit.Must(t, os.WriteFile(filepath.Join(source, name, "main.go"), content, 0o600))
}

// compile builds the programs of the source tree into dir.
func compile(t *testing.T, source, dir string) build {
	t.Helper()
	made := buildIn(dir)
	command(t, source, "go", "build", "-trimpath", "-buildvcs=false", "-o", made.controlPlane, "./cmd/control-plane")
	command(t, source, "go", "build", "-trimpath", "-buildvcs=false", "-o", made.host, "./internal/livetest/fakehost")
	return made
}

func buildIn(dir string) build {
	return build{filepath.Join(dir, "control-plane"), filepath.Join(dir, "fakehost")}
}

// command runs a program in dir and returns what it prints.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}
