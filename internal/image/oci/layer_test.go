package oci

import (
	"bytes"
	"compress/gzip"
	"io"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/klauspost/compress/zstd"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestDiffIDsAreChecked pulls images whose configuration names other contents.
func TestDiffIDsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*v1.ConfigFile){
		"another content": func(c *v1.ConfigFile) { c.RootFS.DiffIDs[1] = c.RootFS.DiffIDs[0] },
		"one too few":     func(c *v1.ConfigFile) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] },
	} {
		image := testImage(t, "amd64")
		config, err := image.ConfigFile()
		testkit.Must(t, err)
		config = config.DeepCopy()
		change(config)
		image, err = mutate.ConfigFile(image, config)
		testkit.Must(t, err)
		pulled, err := Pull(t.Context(), serve(t, image, nil), Access{})
		if err == nil {
			defer pulled.Close()
			_, err = unpack(t, pulled, 1<<20)
		}
		if wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}

// negative is an image whose manifest has a layer of negative size.
type negative struct{ v1.Image }

func (n negative) Manifest() (*v1.Manifest, error) {
	m, err := n.Image.Manifest()
	if err != nil {
		return nil, err
	}
	m = m.DeepCopy()
	m.Layers[1].Size = -1
	return m, nil
}

func TestNegativeSizesAreRefused(t *testing.T) {
	_, err := open(negative{testImage(t, "amd64")}, nil)
	testkit.WantCode(t, err, wrenn.Invalid, "negative size")
}

func TestDecompress(t *testing.T) {
	text := bytes.Repeat([]byte("layer"), 1<<20)
	pack := func(window int) []byte {
		var out bytes.Buffer
		w, err := zstd.NewWriter(&out, zstd.WithWindowSize(window))
		testkit.Must(t, err)
		for half := range slices.Chunk(text, len(text)/2) {
			_, err = w.Write(half)
			testkit.Must(t, err)
			testkit.Must(t, w.Flush()) // then the size is not known at the start, and the window is stated
		}
		testkit.Must(t, w.Close())
		return out.Bytes()
	}
	var zipped bytes.Buffer
	g := gzip.NewWriter(&zipped)
	_, err := g.Write(text)
	testkit.Must(t, err)
	testkit.Must(t, g.Close())
	for name, c := range map[string]struct {
		in []byte
		ok bool
	}{
		"plain":                    {text, true},
		"gzip":                     {zipped.Bytes(), true},
		"zstd":                     {pack(8 << 20), true},
		"zstd with a large window": {pack(128 << 20), false},
	} {
		r, err := decompress(io.NopCloser(bytes.NewReader(c.in)))
		testkit.Must(t, err)
		got, err := io.ReadAll(r)
		if (err == nil) != c.ok || c.ok && !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes, %v; want success: %v", name, len(got), err, c.ok)
		}
		testkit.Must(t, r.Close())
	}
}
