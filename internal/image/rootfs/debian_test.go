package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func TestParseTargets(t *testing.T) {
	targets := strings.Join([]string{
		"Debian|bookworm|http://debian.test/debian/|bookworm|main",
		"Debian|bookworm|http://debian.test/debian/|bookworm|contrib",
		"Debian|bookworm-updates|http://debian.test/debian/|bookworm-updates|main",
		"Debian|bookworm-security|http://mirror.test/debian-security/|bookworm-security|main",
		"Debian Backports|bookworm-backports|http://debian.test/debian/|bookworm-backports|main",
		"nodistro|nodistro|https://node.test/|nodistro|main",
		"Debian|bookworm|http://debian.test/debian/|bookworm|main",
		"nonsense",
	}, "\n")
	by := "deb [signed-by=" + keyring + "] "
	want := []string{
		by + "http://debian.test/debian/ bookworm main",
		by + "http://debian.test/debian/ bookworm-updates main",
		by + "http://mirror.test/debian-security/ bookworm-security main",
	}
	if diff := cmp.Diff(want, parseTargets(targets, "bookworm")); diff != "" {
		t.Errorf("parseTargets() mismatch (-want +got):\n%s", diff)
	}
	if got := parseTargets(targets, "trixie"); got != nil {
		t.Errorf("sources of another suite: %v", got)
	}
}

func TestOSRelease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "os-release")
	if err := os.WriteFile(path, []byte("ID=debian\nVERSION_CODENAME='bookworm'\nNAME=\"Debian GNU/Linux\"\n# x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := osRelease(path)
	want := map[string]string{"ID": "debian", "VERSION_CODENAME": "bookworm", "NAME": "Debian GNU/Linux"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("osRelease() mismatch (-want +got):\n%s", diff)
	}
	if got := osRelease(path + "-missing"); len(got) != 0 {
		t.Errorf("a missing file gave %v", got)
	}
}

func TestArgumentsEndWithTreeAndSources(t *testing.T) {
	args := Debian{Suite: "bookworm", Packages: []string{"git", "curl"}}.arguments("/a tree", []string{"deb x", "deb y"})
	if diff := cmp.Diff([]string{"bookworm", "/a tree", "deb x", "deb y"}, args[len(args)-4:]); diff != "" {
		t.Errorf("arguments mismatch (-want +got):\n%s", diff)
	}
	if !slices.Contains(args, "--include=git,curl") {
		t.Errorf("no packages in %v", args)
	}
}

func TestExplain(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	boom := errors.New("exit status 1")
	for _, tt := range []struct {
		name, output string
		ctx          context.Context
		want         wrenn.Code
	}{
		{"no network", "Err:1 http://debian.test Temporary failure resolving 'debian.test'", t.Context(), wrenn.Unavailable},
		{"full", "tar: write error: No space left on device", t.Context(), wrenn.Exhausted},
		{"full image", "mke2fs: Could not allocate block in ext2 filesystem while populating file system", t.Context(), wrenn.Exhausted},
		{"anything else", "E: something", t.Context(), wrenn.Internal},
		{"interrupted", "killed by signal", canceled, wrenn.Internal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := explain(tt.ctx, "program", boom, []byte(tt.output))
			if got := wrenn.CodeOf(err); got != tt.want {
				t.Errorf("code = %s, want %s (%v)", got, tt.want, err)
			}
			if tt.ctx.Err() != nil != errors.Is(err, context.Canceled) {
				t.Errorf("explain() = %v", err)
			}
		})
	}
}

func TestFindSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := find("mmdebstrap-that-does-not-exist")
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("find() = %v", err)
	}
}
