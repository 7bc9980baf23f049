package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"wrenn.dev/internal/testkit"
)

// write has a program and authorities of some time in a new directory, and makes an image.
func write(t *testing.T, at time.Time, args ...string) (v1.Image, string) {
	t.Helper()
	dir := t.TempDir()
	program, authorities, out := filepath.Join(dir, "control-plane"), filepath.Join(dir, "ca.crt"), filepath.Join(dir, "image")
	testkit.Must(t, os.WriteFile(program, []byte("a program"), 0o700))
	testkit.Must(t, os.WriteFile(authorities, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600))
	testkit.Must(t, os.Chtimes(program, at, at))
	testkit.Must(t, start(t.Context(), append(append([]string{"-out", out, "-authorities", authorities, "-arch", "amd64", "-version", "1.2.3"}, args...), program)))
	index, err := layout.ImageIndexFromPath(out)
	testkit.Must(t, err)
	manifest, err := index.IndexManifest()
	testkit.Must(t, err)
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Platform.Architecture != "amd64" {
		t.Fatalf("index %+v", manifest)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	testkit.Must(t, err)
	testkit.Must(t, validate.Image(image))
	return image, manifest.Manifests[0].Digest.String()
}

func TestSameDigest(t *testing.T) {
	_, first := write(t, time.Now())
	_, again := write(t, time.Now().Add(-time.Hour))
	if first != again {
		t.Errorf("the same files gave %s, then %s", first, again)
	}
	if _, other := write(t, time.Now(), "-version", "1.2.4"); other == first {
		t.Error("another version has the same digest")
	}
}

func TestContent(t *testing.T) {
	image, _ := write(t, time.Now())
	config, err := image.ConfigFile()
	testkit.Must(t, err)
	got := []string{strings.Join(config.Config.Entrypoint, " "), config.Config.User, config.OS, config.Architecture, config.Config.Labels["org.opencontainers.image.version"]}
	if diff := cmp.Diff([]string{"/usr/bin/control-plane", "65532:65532", "linux", "amd64", "1.2.3"}, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	content := mutate.Extract(image)
	defer content.Close()
	modes := map[string]int64{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		testkit.Must(t, err)
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch) {
			t.Errorf("%s is of %d:%d, %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		modes[strings.TrimSuffix(h.Name, "/")] = h.Mode
	}
	want := map[string]int64{
		"etc": 0o755, "etc/passwd": 0o644, "etc/group": 0o644, "etc/ssl": 0o755, "etc/ssl/certs": 0o755, "etc/ssl/certs/ca-certificates.crt": 0o644,
		"tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/bin/control-plane": 0o755,
	}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestArchiveEnds: a tar ends in two blocks of zeros, without which some readers refuse it.
func TestArchiveEnds(t *testing.T) {
	text, err := archive([]File{{Name: "usr/bin/x", Mode: programMode, Content: []byte("x")}})
	if err != nil || !strings.HasSuffix(string(text), strings.Repeat("\x00", 1024)) {
		t.Errorf("the last bytes are %q, %v", text[len(text)-16:], err)
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	testkit.Must(t, os.WriteFile(empty, nil, 0o600))
	for want, args := range map[string][]string{
		"the programs":    {"-out", dir},
		"no certificates": {"-out", filepath.Join(dir, "x"), "-authorities", empty, empty},
		"no such file":    {"-out", filepath.Join(dir, "x"), "-authorities", filepath.Join(dir, "none"), os.Args[0]},
	} {
		if err := start(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
	}
	if _, err := (Settings{}).Write(dir); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a directory that exists: %v", err)
	}
}
