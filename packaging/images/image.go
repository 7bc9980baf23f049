package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is a file of a layer, of root and without a time. A directory's name ends with /;
// those above a file need not be listed.
type File struct {
	Name    string
	Mode    int64
	Content []byte
}

// Settings are an image.
type Settings struct {
	Layers            [][]File
	Entrypoint, User  string
	Architecture      string
	Version, Revision string // labels; may be ""
}

// epoch is the time of every file, and of the image.
var epoch = time.Unix(0, 0).UTC()

// Write writes the image as an OCI layout to the directory out, which must not exist, and
// returns its digest.
func (s Settings) Write(out string) (v1.Hash, error) {
	image, err := s.image()
	if err != nil {
		return v1.Hash{}, err
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		return v1.Hash{}, fmt.Errorf("%s exists: remove it, or name another directory", out)
	}
	to, err := layout.Write(out, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := to.AppendImage(image, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: s.Architecture})); err != nil {
		return v1.Hash{}, err
	}
	return image.Digest()
}

func (s Settings) image() (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, files := range s.Layers {
		text, err := archive(files)
		if err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }
		layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "packaging/images"}})
		if err != nil {
			return nil, err
		}
	}
	labels := map[string]string{"org.opencontainers.image.version": s.Version, "org.opencontainers.image.revision": s.Revision}
	for key, value := range labels {
		if value == "" {
			delete(labels, key)
		}
	}
	return mutate.ConfigFile(image, s.config(image, labels))
}

// config returns the configuration of an image that has its layers.
func (s Settings) config(image v1.Image, labels map[string]string) *v1.ConfigFile {
	config, err := image.ConfigFile()
	if err != nil {
		panic(err) // it is in memory
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", s.Architecture, v1.Time{Time: epoch}
	config.Config = v1.Config{
		Entrypoint: []string{s.Entrypoint}, User: s.User, WorkingDir: "/", Env: []string{"PATH=/usr/bin"}, Labels: labels,
	}
	return config
}

// archive returns the files and the directories above them as a tar.
func archive(files []File) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{"./": true}
	for _, file := range files {
		if err := directories(w, made, path.Dir(strings.TrimSuffix(file.Name, "/"))); err != nil {
			return nil, err
		}
		header := &tar.Header{Name: file.Name, Mode: file.Mode, Size: int64(len(file.Content)), ModTime: epoch, Typeflag: tar.TypeReg}
		if strings.HasSuffix(file.Name, "/") {
			header.Typeflag, made[file.Name] = tar.TypeDir, true
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(file.Content); err != nil {
			return nil, err
		}
	}
	err := w.Close() // writes the end
	return out.Bytes(), err
}

// directories writes dir and those above it, unless they were made.
func directories(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir+"/"] {
		return nil
	}
	made[dir+"/"] = true
	if err := directories(w, made, path.Dir(dir)); err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{Name: dir + "/", Mode: dirMode, ModTime: epoch, Typeflag: tar.TypeDir})
}
