package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"wrenn.dev/internal/image"
	"wrenn.dev/internal/image/oci"
)

type imageCommands struct {
	Prepare       imagePrepare       `cmd:"" help:"Make the default guest image, unless it exists, and print its files."`
	FromContainer imageFromContainer `cmd:"" help:"Make a guest image from the files of a container."`
	FromOCI       imageFromOCI       `cmd:"" name:"from-oci" help:"Make a guest image from a container image."`
	Update        imageUpdate        `cmd:"" help:"Write this version's guest agent into an image that from-container or from-oci made."`
}

// imageFlags are the flags of every command about images.
type imageFlags struct {
	Images string `type:"path" help:"Directory for guest images; default: images in --state."`
	Envd   string `type:"existingfile" help:"The guest agent; default: envd beside this program."`
	Stage0 string `type:"existingfile" help:"The first program that a guest runs; default: stage0 beside this program."`
}

// config sends progress to standard error: standard output is for the result.
func (f imageFlags) config(line *commandLine, std streams) image.Config {
	return image.Config{StateDir: line.State, Dir: f.Images, Out: std.err, Envd: f.Envd, Stage0: f.Stage0}
}

type imagePrepare struct {
	imageFlags
	Export bool `help:"Print the paths of the image's files as environment variables, for tests with real machines."`
}

// Run prints the paths of the files.
func (c *imagePrepare) Run(ctx context.Context, line *commandLine, std streams) error {
	guest, err := image.Prepare(ctx, c.config(line, std))
	if err != nil {
		return err
	}
	if c.Export {
		return guest.Export(std.out)
	}
	_, err = fmt.Fprintf(std.out, "kernel  %s\ninitrd  %s\nrootfs  %s\n", guest.Kernel, guest.Initrd, guest.RootFS)
	return err
}

type imageFromContainer struct {
	imageFlags
	Name    string `arg:"" help:"The name of the new image."`
	Tar     string `default:"-" help:"A tar archive as docker export writes it; - is standard input."`
	Replace bool   `help:"Replace an existing image of that name."`
}

// Run prints to standard error which programs a guest will miss.
func (c *imageFromContainer) Run(ctx context.Context, line *commandLine, std streams) error {
	archive := io.NopCloser(std.in)
	if c.Tar != "-" {
		f, err := os.Open(c.Tar)
		if err != nil {
			return err
		}
		archive = f
	}
	defer archive.Close()
	if err := image.FromContainer(ctx, c.config(line, std), c.Name, archive, c.Replace); err != nil {
		return err
	}
	_, err := fmt.Fprintf(std.out, "image %s is ready\n", c.Name)
	return err
}

type imageFromOCI struct {
	imageFlags
	Source        string `arg:"" help:"The container image, such as debian:12, registry.example/app@sha256:…, docker-archive:FILE, oci:DIRECTORY, docker-daemon:NAME or containers-storage:NAME (Podman)."`
	Name          string `arg:"" help:"The name of the new image."`
	Username      string `help:"User name at the registry; default: the login that docker login stored for this user."`
	PasswordStdin bool   `help:"Read the registry's password from standard input."`
	Replace       bool   `help:"Replace an existing image of that name."`
}

// Run prints to standard error its progress and which programs a guest will miss.
func (c *imageFromOCI) Run(ctx context.Context, line *commandLine, std streams) error {
	access := oci.Access{Username: c.Username, Keychain: authn.DefaultKeychain}
	if c.PasswordStdin {
		const maxPassword = 64 << 10 // tokens are long
		password, err := io.ReadAll(io.LimitReader(std.in, maxPassword))
		if err != nil {
			return err
		}
		access.Password = strings.TrimRight(string(password), "\r\n")
	}
	cfg := c.config(line, std)
	container, err := oci.Open(ctx, c.Source, access)
	if err != nil {
		return err
	}
	err = image.FromOCI(ctx, cfg, c.Name, container, c.Replace)
	if err := errors.Join(err, container.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "image %s is ready: %s\n", c.Name, container.Digest)
	return err
}

type imageUpdate struct {
	imageFlags
	Name string `arg:"" help:"The image."`
}

// Run returns when the new image is in place.
func (c *imageUpdate) Run(ctx context.Context, line *commandLine, std streams) error {
	if err := image.Update(ctx, c.config(line, std), c.Name); err != nil {
		return err
	}
	_, err := fmt.Fprintf(std.out, "image %s is up to date\n", c.Name)
	return err
}
