package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"wrenn.dev"
	"wrenn.dev/internal/image/rootfs"
)

// layerOf makes a layer of files from their names and contents.
func layerOf(t *testing.T, files ...string) v1.Layer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		h := tar.Header{Typeflag: tar.TypeReg, Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Uid: os.Getuid(), Gid: os.Getgid()}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func testImage(t *testing.T, architecture string) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layerOf(t, "a", "lower", "b", "lower"), layerOf(t, "a", "upper", ".wh.b", ""))
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", architecture
	config.Config = v1.Config{Env: []string{"PATH=/bin", "EMPTY=", "odd"}, WorkingDir: "/srv", User: "app", Entrypoint: []string{"/run"}, Cmd: []string{"-v"}}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// serve runs a registry with the image in it, as app:1.
func serve(t *testing.T, image v1.Image, wrap func(http.Handler) http.Handler) (ref string) {
	t.Helper()
	handler := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	push := httptest.NewServer(handler)
	defer push.Close()
	tag, err := name.NewTag(strings.TrimPrefix(push.URL, "http://") + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		t.Fatal(err)
	}
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/app:1"
}

// unpack returns the files of an image.
func unpack(t *testing.T, image *Image, limit int64) (map[string]string, error) {
	t.Helper()
	dir := t.TempDir()
	tree, err := rootfs.OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := image.Unpack(t.Context(), tree, limit, io.Discard); err != nil {
		return nil, err
	}
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(data)
	}
	return got, nil
}

func TestPull(t *testing.T) {
	image := testImage(t, "amd64")
	got, err := Pull(t.Context(), serve(t, image, nil), Access{})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != digest.String() {
		t.Errorf("digest %s, want %s", got.Digest, digest)
	}
	want := Config{Env: map[string]string{"PATH": "/bin", "EMPTY": ""}, WorkingDir: "/srv", User: "app", Command: []string{"/run", "-v"}}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	files, err := unpack(t, got, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "upper"}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestOpenReadsLocalImages(t *testing.T) {
	image := testImage(t, "amd64")
	archive, dir := filepath.Join(t.TempDir(), "image.tar"), t.TempDir()
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, image); err != nil {
		t.Fatal(err)
	}
	index, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, architecture := range []string{"arm64", "amd64"} {
		if err := index.AppendImage(testImage(t, architecture), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: architecture})); err != nil {
			t.Fatal(err)
		}
	}
	// A fake docker that has the image: only its command is used.
	bin := t.TempDir()
	script := "#!/bin/sh\n[ \"$1 $2 $4\" = 'save --output app:1' ] || { echo no such image >&2; exit 1; }\ncp " + archive + " \"$3\"\n"
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("TMPDIR", t.TempDir())
	for _, source := range []string{"docker-archive:" + archive, "oci:" + dir, "docker-daemon:app:1"} {
		t.Run(source, func(t *testing.T) {
			got, err := Open(t.Context(), source, Access{})
			if err != nil {
				t.Fatal(err)
			}
			files, err := unpack(t, got, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if files["a"] != "upper" || got.Config.WorkingDir != "/srv" {
				t.Errorf("files %v, config %+v", files, got.Config)
			}
			if err := errors.Join(got.Close(), got.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("copies are left: %v, %v", left, err)
	}
	if _, err := Open(t.Context(), "docker-daemon:other", Access{}); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "no such image") {
		t.Errorf("Open() = %v, want what docker said", err)
	}
}

// withLogin requires a user and a password.
func withLogin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// withBadLayers answers blobs with other content.
func withBadLayers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		if strings.Contains(r.URL.Path, "/blobs/") && bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
			body[len(body)/2] ^= 1
		}
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(body)
	})
}

func TestRegistryErrors(t *testing.T) {
	good := serve(t, testImage(t, "amd64"), nil)
	private := serve(t, testImage(t, "amd64"), withLogin)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name, ref string
		ctx       context.Context
		access    Access
		want      wrenn.Code
	}{
		{"login", private, t.Context(), Access{Username: "me", Password: "secret"}, ""},
		{"no login", private, t.Context(), Access{}, wrenn.PermissionDenied},
		{"wrong login", private, t.Context(), Access{Username: "me", Password: "wrong"}, wrenn.PermissionDenied},
		{"no such tag", strings.TrimSuffix(good, "1") + "2", t.Context(), Access{}, wrenn.NotFound},
		{"no name", "UPPER CASE", t.Context(), Access{}, wrenn.Invalid},
		{"nobody there", "127.0.0.1:1/app", t.Context(), Access{}, wrenn.Unavailable},
		{"another architecture", serve(t, testImage(t, "arm64"), nil), t.Context(), Access{}, wrenn.FailedPrecondition},
		{"canceled", good, canceled, Access{}, wrenn.Internal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Pull(tt.ctx, tt.ref, tt.access)
			if wrenn.CodeOf(err) != tt.want {
				t.Errorf("Pull() = %v, want %q", err, tt.want)
			}
			if err == nil {
				got.Close()
			} else if tt.access.Password != "" && strings.Contains(err.Error(), tt.access.Password) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		wrap  func(http.Handler) http.Handler
		limit int64
		want  wrenn.Code
	}{
		"a layer that is not what the manifest says": {withBadLayers, 1 << 20, wrenn.Invalid},
		"more than fits": {nil, 20 << 10, wrenn.Exhausted},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := Pull(t.Context(), serve(t, testImage(t, "amd64"), tt.wrap), Access{})
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			if files, err := unpack(t, image, tt.limit); wrenn.CodeOf(err) != tt.want {
				t.Errorf("Unpack() = %v, %v, want %s", files, err, tt.want)
			}
		})
	}
}

// endless is a registry whose image has a manifest and endless blobs.
func endless(t *testing.T, manifest string) (ref string, sent *atomic.Int64) {
	t.Helper()
	sent = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case r.URL.Path == "/elsewhere":
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = io.WriteString(w, manifest)
		case strings.Contains(r.URL.Path, "/blobs/"):
			for chunk := make([]byte, 1<<20); ; {
				n, err := w.Write(chunk)
				if sent.Add(int64(n)); err != nil || sent.Load() > 1<<30 {
					return
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://") + "/app:1", sent
}

// TestPullIsBounded: a registry may lie about sizes, and documents are read into
// memory.
func TestPullIsBounded(t *testing.T) {
	manifest := func(size int64, more string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"size":%d,"digest":"sha256:%064d"},"layers":[]%s}`,
			types.OCIManifestSchema1, types.OCIConfigJSON, size, 1, more)
	}
	for name, text := range map[string]string{
		"a large configuration":           manifest(maxDocument+1, ""),
		"a configuration of unknown size": manifest(-1, ""),
		"a large manifest":                manifest(1, strings.Repeat(" ", maxDocument)),
	} {
		t.Run(name, func(t *testing.T) {
			ref, sent := endless(t, text)
			_, err := Pull(t.Context(), ref, Access{})
			if wrenn.CodeOf(err) != wrenn.Invalid || !strings.Contains(err.Error(), "more than 4 MiB") {
				t.Errorf("Pull() = %v, want that it is too large", err)
			}
			if sent.Load() > 0 {
				t.Errorf("%d bytes of a blob were sent", sent.Load())
			}
		})
	}
}

// silent answers requests for the suffix with one byte too few, and then sends
// nothing until the client has gone.
func silent(suffix string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, suffix) {
				next.ServeHTTP(w, r)
				return
			}
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			maps.Copy(w.Header(), answer.Header())
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()-1])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
	}
}

// TestSilentRegistry: the error for a registry that sends nothing gives the reason.
func TestSilentRegistry(t *testing.T) {
	image := testImage(t, "amd64")
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for name, suffix := range map[string]string{
		"manifest":      "/manifests/1",
		"configuration": manifest.Config.Digest.String(),
		"layer":         manifest.Layers[1].Digest.String(),
	} {
		t.Run(name, func(t *testing.T) {
			hasty := Access{Transport: careful{http.DefaultTransport, 200 * time.Millisecond}}
			got, err := Pull(t.Context(), serve(t, image, silent(suffix)), hasty)
			if err == nil {
				defer got.Close()
				_, err = unpack(t, got, 1<<20)
			}
			if wrenn.CodeOf(err) != wrenn.Unavailable || !strings.Contains(err.Error(), "sent nothing for 200ms") {
				t.Errorf("Pull() or Unpack() = %v, want that nothing came", err)
			}
		})
	}
}

// trickle sends a byte from time to time, forever.
type trickle struct{ ctx context.Context }

func (t trickle) Read(p []byte) (int, error) {
	select {
	case <-time.After(5 * time.Millisecond):
		p[0] = 'x'
		return 1, nil
	case <-t.ctx.Done():
		return 0, t.ctx.Err()
	}
}

// TestTricklingRegistry: a registry that is slow but never silent for long is
// rejected, too.
func TestTricklingRegistry(t *testing.T) {
	ctx, end := context.WithCancelCause(t.Context())
	body := watch(ctx, end, io.NopCloser(trickle{ctx}), 100*time.Millisecond)
	_, err := io.Copy(io.Discard, body)
	if wrenn.CodeOf(err) != wrenn.Unavailable || !strings.Contains(err.Error(), "less than 32 KiB a second") {
		t.Errorf("read %d bytes, then %v; want that it is too slow", body.received, err)
	}
}
