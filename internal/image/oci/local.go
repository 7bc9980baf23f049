package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"wrenn.dev"
)

// The transports that Open knows, as skopeo and podman name them.
const (
	dockerArchive = "docker-archive"     // :FILE, as docker save writes it
	layoutDir     = "oci"                // :DIRECTORY, an OCI image layout
	dockerDaemon  = "docker-daemon"      // :NAME that Docker has
	podmanStorage = "containers-storage" // :NAME that Podman has
)

// Open finds an image by one of the transports above, else in its registry, as
// Pull does. It reads files of this machine and runs programs, so it is only for
// the machine's operator. An image of Docker or Podman is copied into a temporary
// file, which Close removes.
func Open(ctx context.Context, source string, access Access) (*Image, error) {
	transport, at, _ := strings.Cut(source, ":")
	switch transport {
	case dockerArchive:
		return fromArchive(at, nil)
	case layoutDir:
		return fromLayout(at)
	case dockerDaemon:
		return saved(ctx, "docker", at)
	case podmanStorage:
		return saved(ctx, "podman", at)
	default:
		return Pull(ctx, source, access)
	}
}

func fromArchive(path string, cleanup func() error) (*Image, error) {
	image, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		if cleanup != nil {
			err = errors.Join(err, cleanup())
		}
		return nil, unreadable(path, err)
	}
	opened, err := open(image, cleanup)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return opened, nil
}

func fromLayout(dir string) (*Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, unreadable(dir, err)
	}
	image, err := pick(index, 0)
	if err != nil {
		return nil, unreadable(dir, err)
	}
	opened, err := open(image, nil)
	if err != nil {
		return nil, unreadable(dir, err)
	}
	return opened, nil
}

// pick finds the first image for the guests' platform in an index.
func pick(index v1.ImageIndex, depth int) (v1.Image, error) {
	const maxDepth = 4
	if depth == maxDepth {
		return nil, wrenn.Errorf(wrenn.Invalid, "the layout's indexes are nested too deeply")
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range manifest.Manifests {
		if d.Platform != nil && !d.Platform.Satisfies(platform) {
			continue
		}
		switch {
		case d.MediaType.IsImage():
			return index.Image(d.Digest)
		case d.MediaType.IsIndex():
			child, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			return pick(child, depth+1)
		}
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "the layout has no image for %s", platform)
}

// saved makes Docker or Podman write the image into a temporary file, which needs
// only their command.
func saved(ctx context.Context, program, ref string) (*Image, error) {
	if ref == "" || strings.HasPrefix(ref, "-") {
		return nil, wrenn.Errorf(wrenn.Invalid, "%.200q does not name a container image", ref)
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s is not installed here", program)
	}
	dir, err := os.MkdirTemp("", "wrenn-save-*")
	if err != nil {
		return nil, err
	}
	remove := func() error { return os.RemoveAll(dir) }
	file := filepath.Join(dir, "image.tar")
	args := []string{"save", "--output", file}
	if program == "podman" {
		args = append(args, "--format", "docker-archive")
	}
	cmd := exec.CommandContext(ctx, path, append(args, ref)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		err = &wrenn.Error{
			Code: wrenn.FailedPrecondition, Err: errors.Join(err, remove()),
			Message: fmt.Sprintf("%s did not save the image: %.300s", program, strings.TrimSpace(string(output))),
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return fromArchive(file, remove)
}

func unreadable(path string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return &wrenn.Error{Code: wrenn.NotFound, Message: fmt.Sprintf("there is no container image at %s", path), Err: err}
	}
	if _, ok := errors.AsType[*wrenn.Error](err); ok {
		return err
	}
	return &wrenn.Error{Code: wrenn.Invalid, Message: fmt.Sprintf("%s cannot be read as a container image", path), Err: err}
}
