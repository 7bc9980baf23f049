// Package oci reads container images from where they are: a registry, a file or
// directory on this machine, Docker or Podman.
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

	"wrenn"
	"wrenn/internal/image/rootfs"
)

// maxLayers bounds what an image may have; Docker makes 127 at most.
const maxLayers = 512

// platform is that of the guests.
var platform = v1.Platform{OS: "linux", Architecture: "amd64"}

// Access is how a registry is asked. It is used and never kept.
type Access struct {
	// Username and Password are for a registry that wants them; Password may be
	// a token.
	Username, Password string
	// Keychain, if set, is asked where there is no Username: authn.DefaultKeychain
	// reads what `docker login` wrote. It is for those who own this machine.
	Keychain authn.Keychain
	// Transport replaces the default one, which heeds HTTPS_PROXY.
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
	return append(options, remote.WithTransport(careful{cmp.Or(a.Transport, remote.DefaultTransport)}))
}

// Image is a container image. Close it.
type Image struct {
	image   v1.Image
	layers  []v1.Layer
	cleanup func() error
	// Digest names the manifest, like sha256:….
	Digest string
	Config Config
}

// Config is what an image says about the programs that run in it.
type Config struct {
	Env        map[string]string
	WorkingDir string
	User       string
	Command    []string // entry point and arguments
}

// Pull finds the image ref in its registry, like debian:12 or
// registry.example/team/app@sha256:…; its layers are fetched when they are
// unpacked. NotFound when the registry has none for linux/amd64, PermissionDenied
// when it does not let us in, Unavailable when it cannot be reached.
func Pull(ctx context.Context, ref string, access Access) (*Image, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "%.200q does not name a container image: say NAME:TAG or NAME@sha256:DIGEST", ref)
	}
	image, err := remote.Image(parsed, access.options(ctx)...)
	if err != nil {
		return nil, explain(ctx, ref, err)
	}
	opened, err := open(image, nil)
	if err != nil {
		return nil, explain(ctx, ref, err)
	}
	return opened, nil
}

// open reads what an image says of itself; it owns cleanup, also when it fails.
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
	return nil
}

// config reads the configuration. Of a negative size it would be read without an end.
func (i *Image) config() (*v1.ConfigFile, error) {
	manifest, err := i.image.Manifest()
	if err != nil {
		return nil, err
	}
	if size := manifest.Config.Size; size < 0 || size > maxDocument {
		return nil, tooLarge("configuration")
	}
	return i.image.ConfigFile()
}

// Close removes what was copied to read the image. Twice is allowed.
func (i *Image) Close() error {
	if i.cleanup == nil {
		return nil
	}
	cleanup := i.cleanup
	i.cleanup = nil
	return cleanup()
}

// Unpack puts the image's files into an empty tree, at most limit bytes of its disk,
// and tells out about each layer. A layer whose content has not the digest that the
// manifest says is an error.
func (i *Image) Unpack(ctx context.Context, tree *rootfs.Tree, limit int64, out io.Writer) error {
	for n, layer := range i.layers {
		if size, err := layer.Size(); err == nil {
			fmt.Fprintf(out, "  layer %d of %d, %.1f MB\n", n+1, len(i.layers), float64(size)/1e6)
		}
		size, err := unpackLayer(ctx, tree, layer, limit)
		if err != nil {
			return explain(ctx, fmt.Sprintf("layer %d", n+1), err)
		}
		limit -= size
	}
	return nil
}

func unpackLayer(ctx context.Context, tree *rootfs.Tree, layer v1.Layer, limit int64) (int64, error) {
	content, err := layer.Uncompressed()
	if err != nil {
		return 0, err
	}
	size, err := tree.ExtractLayer(ctx, content, limit)
	return size, errors.Join(err, content.Close())
}

// explain makes a sentence of what a registry answered.
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
			return &wrenn.Error{Code: wrenn.PermissionDenied, Message: fmt.Sprintf("the registry does not give us %.200s: is its name right, and the login?", what), Err: err}
		case http.StatusNotFound:
			return &wrenn.Error{Code: wrenn.NotFound, Message: fmt.Sprintf("the registry has no %.200s", what), Err: err}
		case http.StatusTooManyRequests:
			return &wrenn.Error{Code: wrenn.Unavailable, Message: "the registry has had too many requests from here: try again later, or log in", Err: err}
		}
		return &wrenn.Error{Code: wrenn.Unavailable, Message: fmt.Sprintf("the registry could not give us %.200s: try again", what), Err: err}
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return &wrenn.Error{Code: wrenn.Unavailable, Message: fmt.Sprintf("the registry of %.200s cannot be reached", what), Err: err}
	}
	return &wrenn.Error{Code: wrenn.Invalid, Message: fmt.Sprintf("%.200s cannot be read as a container image", what), Err: err}
}
