package clienttest

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
)

// volumeEntry is an entry of the volume "data".
func (f *fake) volumeEntry(volume, path string, kind wrenn.FileType, a wrenn.VolumeAttributes) (wrenn.VolumeEntry, error) {
	_, err := f.volume(volume, 0)
	e := wrenn.VolumeEntry{Path: path, Type: kind, Size: 7, Mode: 0o644, UID: 1000, GID: 1000, AccessedAt: made, ModifiedAt: made, ChangedAt: made}
	if a.Mode != nil {
		e.Mode = *a.Mode
	}
	return e, err
}

func (f *fake) StatVolumeFile(_ context.Context, _ service.Caller, volume, path string) (wrenn.VolumeEntry, error) {
	e, err := f.volumeEntry(volume, path, wrenn.Symlink, wrenn.VolumeAttributes{})
	e.Target = "../x"
	return e, err
}

func (f *fake) ListVolumeFiles(_ context.Context, _ service.Caller, volume, path string, levels int) ([]wrenn.VolumeEntry, error) {
	e, err := f.volumeEntry(volume, path+strings.Repeat("/a", levels), wrenn.RegularFile, wrenn.VolumeAttributes{})
	return []wrenn.VolumeEntry{e}, err
}

func (f *fake) MakeVolumeDirectory(_ context.Context, _ service.Caller, volume, path string, a wrenn.VolumeAttributes, parents bool) (wrenn.VolumeEntry, error) {
	if !parents {
		return wrenn.VolumeEntry{}, wrenn.Errorf(wrenn.AlreadyExists, "it exists")
	}
	return f.volumeEntry(volume, path, wrenn.Directory, a)
}

func (f *fake) RemoveVolumeFile(_ context.Context, _ service.Caller, volume, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, path)
	_, err := f.volume(volume, 0)
	return err
}

func (f *fake) ReadVolumeFile(_ context.Context, _ service.Caller, volume, path string) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.volume(volume, 0)
	return io.NopCloser(strings.NewReader(string(f.files[path]))), err
}

func (f *fake) WriteVolumeFile(_ context.Context, _ service.Caller, volume, path string, w wrenn.VolumeWrite, content io.Reader) (wrenn.VolumeEntry, error) {
	if w.NoReplace {
		return wrenn.VolumeEntry{}, wrenn.Errorf(wrenn.AlreadyExists, "it exists")
	}
	text, err := io.ReadAll(content)
	if err != nil {
		return wrenn.VolumeEntry{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files = map[string][]byte{path: text}
	return f.volumeEntry(volume, path, wrenn.RegularFile, w.VolumeAttributes)
}

func TestVolumeFiles(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	mode := uint32(0o600)
	entry := func(path, kind string, mode uint32) *client.VolumeEntry {
		return &client.VolumeEntry{Path: path, Type: kind, Size: 7, Mode: mode, UID: 1000, GID: 1000, AccessedAt: made, ModifiedAt: made, ChangedAt: made}
	}
	link := entry("/a b&c", "symlink", 0o644)
	link.Target = "../x"
	for name, get := range map[string]func() (got, want any, err error){
		"VolumeFile": func() (any, any, error) {
			got, err := c.VolumeFile(t.Context(), "data", "/a b&c")
			return got, link, err
		},
		"VolumeFiles": func() (any, any, error) {
			got, err := c.VolumeFiles(t.Context(), "data", "/d", 2)
			return got, []client.VolumeEntry{*entry("/d/a/a", "file", 0o644)}, err
		},
		"CreateVolumeDirectory": func() (any, any, error) {
			got, err := c.CreateVolumeDirectory(t.Context(), "data", "/d", client.VolumeFileOptions{Mode: &mode, Parents: true})
			return got, entry("/d", "directory", 0o600), err
		},
		"WriteVolumeFile": func() (any, any, error) {
			got, err := c.WriteVolumeFile(t.Context(), "data", "/w", strings.NewReader("content"), client.VolumeFileOptions{Mode: &mode})
			return got, entry("/w", "file", 0o600), err
		},
	} {
		got, want, err := get()
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	in, err := c.ReadVolumeFile(t.Context(), "data", "/w")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if text, err := io.ReadAll(in); string(text) != "content" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	if err := c.DeleteVolumeFile(t.Context(), "data", "/w"); err != nil || len(f.files) > 0 {
		t.Errorf("deleted: %v; left is %q", err, f.files)
	}
}

func TestVolumeFileErrors(t *testing.T) {
	c := serve(t, &fake{})
	own := errors.New("the disk broke")
	_, read := c.WriteVolumeFile(t.Context(), "data", "/w", iotest.ErrReader(own), client.VolumeFileOptions{})
	if !errors.Is(read, own) {
		t.Errorf("with content that cannot be read: %v", read)
	}
	_, replaced := c.WriteVolumeFile(t.Context(), "data", "/w", strings.NewReader(""), client.VolumeFileOptions{NoReplace: true})
	_, made := c.CreateVolumeDirectory(t.Context(), "data", "/d", client.VolumeFileOptions{})
	_, missing := c.ReadVolumeFile(t.Context(), "other", "/w")
	_, named := c.VolumeFiles(t.Context(), "data", "\xff", 1)
	deleted := c.DeleteVolumeFile(t.Context(), "other", "/w")
	got := []client.Code{client.CodeOf(replaced), client.CodeOf(made), client.CodeOf(missing), client.CodeOf(named), client.CodeOf(deleted)}
	want := []client.Code{client.Conflict, client.Conflict, client.NotFound, client.InvalidRequest, client.NotFound}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("codes (-want +got):\n%s", diff)
	}
}
