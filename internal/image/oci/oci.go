// Package oci reads container images from a registry, from a file or directory on
// this machine, or from Docker or Podman.
package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"wrenn.dev"
	"wrenn.dev/internal/image/rootfs"
)

// maxLayers bounds an image's layers; Docker makes at most 127.
const maxLayers = 512

// platform is the guests' platform.
var platform = v1.Platform{OS: "linux", Architecture: "amd64"}

// Access has the credentials and the transport for a registry. They are never
// stored.
type Access struct {
	// Username and Password are for a registry that requires them; Password may be
	// a token.
	Username, Password string
	// Keychain, if set, is used without a Username: authn.DefaultKeychain reads the
	// credentials of `docker login`. It is only for the machine's operator.
	Keychain authn.Keychain
	// Transport replaces the default transport, which uses HTTPS_PROXY.
	Transport http.RoundTripper
}

func (a Access) options(ctx context.Context) []remote.Option {
	options := []remote.Option{remote.WithContext(ctx), remote.WithPlatform(platform)}
	switch {
	case a.Username != "" || a.Password != "":
		options = append(options, remote.WithAuth(&authn.Basic{Username: a.Username, Password: a.Password}))
	case a.Keychain != nil:
		options = append(options, remote.WithAuthFromKeychain(a.Keychain))
	}
	return append(options, remote.WithTransport(careful{cmp.Or(a.Transport, remote.DefaultTransport), maxSilence}))
}

// Image is a container image. The caller must Close it.
type Image struct {
	image   v1.Image
	layers  []v1.Layer
	diffIDs []v1.Hash // of the layers' contents
	remote  bool      // a registry's
	cleanup func() error
	// Digest names the manifest, like sha256:….
	Digest string
	Config Config
}

// Config is an image's configuration for the programs that run in it.
type Config struct {
	Env        map[string]string
	WorkingDir string
	User       string
	Command    []string // entry point and arguments
}

// Pull finds the image ref in its registry, like debian:12 or
// registry.example/team/app@sha256:…; its layers are downloaded when they are
// unpacked. NotFound when the registry has no such image for linux/amd64,
// PermissionDenied when it refuses access, Unavailable when it cannot be reached.
func Pull(ctx context.Context, ref string, access Access) (*Image, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "%.200q does not name a container image: use NAME:TAG or NAME@sha256:DIGEST", ref)
	}
	image, err := remote.Image(parsed, access.options(ctx)...)
	if err != nil {
		return nil, explain(ctx, ref, err)
	}
	opened, err := open(image, nil)
	if err != nil {
		return nil, explain(ctx, ref, err)
	}
	opened.remote = true
	return opened, nil
}

// open reads an image's manifest and configuration. It calls cleanup if it fails,
// else Close does.
func open(image v1.Image, cleanup func() error) (*Image, error) {
	i := &Image{image: image, cleanup: cleanup}
	if err := i.read(); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

func (i *Image) read() error {
	digest, err := i.image.Digest()
	if err != nil {
		return err
	}
	i.Digest = digest.String()
	config, err := i.config()
	if err != nil {
		return err
	}
	if config.OS != "" && config.OS != platform.OS || config.Architecture != "" && config.Architecture != platform.Architecture {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the image is for %.40s/%.40s; guests are %s", config.OS, config.Architecture, platform)
	}
	i.Config = Config{
		Env: map[string]string{}, WorkingDir: config.Config.WorkingDir, User: config.Config.User,
		Command: append(slices.Clone(config.Config.Entrypoint), config.Config.Cmd...),
	}
	for _, pair := range config.Config.Env {
		if key, value, ok := strings.Cut(pair, "="); ok {
			i.Config.Env[key] = value
		}
	}
	if i.layers, err = i.image.Layers(); err != nil {
		return err
	}
	if len(i.layers) > maxLayers {
		return wrenn.Errorf(wrenn.Invalid, "the image has more than %d layers", maxLayers)
	}
	if i.diffIDs = config.RootFS.DiffIDs; len(i.diffIDs) != len(i.layers) {
		return wrenn.Errorf(wrenn.Invalid, "the image has %d layers, and its configuration has %d", len(i.layers), len(i.diffIDs))
	}
	return nil
}

// config reads the configuration, after a check of its size: the library reads one
// with a negative size without a bound.
func (i *Image) config() (*v1.ConfigFile, error) {
	manifest, err := i.image.Manifest()
	if err != nil {
		return nil, err
	}
	if size := manifest.Config.Size; size < 0 || size > maxDocument {
		return nil, tooLarge("configuration")
	}
	for n, layer := range manifest.Layers {
		if layer.Size < 0 {
			return nil, wrenn.Errorf(wrenn.Invalid, "layer %d of the image has a negative size", n+1)
		}
	}
	return i.image.ConfigFile()
}

// Close removes temporary copies of the image. Twice is allowed.
func (i *Image) Close() error {
	if i.cleanup == nil {
		return nil
	}
	cleanup := i.cleanup
	i.cleanup = nil
	return cleanup()
}

// Unpack writes the image's files into an empty tree, at most limit bytes on its
// disk, and a line about each layer to out. A layer that does not match its digest
// in the manifest, or whose content does not match the configuration, is an error.
func (i *Image) Unpack(ctx context.Context, tree *rootfs.Tree, limit int64, out io.Writer) error {
	for n, layer := range i.layers {
		if size, err := layer.Size(); err == nil {
			fmt.Fprintf(out, "  layer %d of %d, %.1f MB\n", n+1, len(i.layers), float64(size)/1e6)
		}
		size, err := i.unpackLayer(ctx, tree, n, limit)
		if err != nil {
			return explain(ctx, fmt.Sprintf("layer %d", n+1), err)
		}
		limit -= size
	}
	return nil
}

// explain makes a readable error of a registry's answer.
func explain(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*wrenn.Error](err); ok {
		return err
	}
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		switch answer.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return &wrenn.Error{Code: wrenn.PermissionDenied, Message: fmt.Sprintf("the registry refuses access to %.200s: check its name and the login", what), Err: err}
		case http.StatusNotFound:
			return &wrenn.Error{Code: wrenn.NotFound, Message: fmt.Sprintf("the registry has no %.200s", what), Err: err}
		case http.StatusTooManyRequests:
			return &wrenn.Error{Code: wrenn.Unavailable, Message: "the registry limits the requests of this host: try again later, or log in", Err: err}
		}
		return &wrenn.Error{Code: wrenn.Unavailable, Message: fmt.Sprintf("the registry cannot serve %.200s now: try again", what), Err: err}
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return &wrenn.Error{Code: wrenn.Unavailable, Message: fmt.Sprintf("the registry of %.200s cannot be reached", what), Err: err}
	}
	return &wrenn.Error{Code: wrenn.Invalid, Message: fmt.Sprintf("%.200s cannot be read as a container image", what), Err: err}
}
