package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"

	"wrenn/internal/image"
)

type imageCommands struct {
	Prepare       imagePrepare       `cmd:"" help:"Make the default image, or find it made."`
	FromContainer imageFromContainer `cmd:"" help:"Make an image of a container's files."`
	Update        imageUpdate        `cmd:"" help:"Put this version's agent into an image that from-container made."`
}

// imageFlags are what every command about images takes.
type imageFlags struct {
	Images string `type:"path" help:"Directory for guest images, if not --state."`
	Envd   string `type:"existingfile" help:"The guest's agent; default: envd beside this program."`
	Stage0 string `type:"existingfile" help:"The guest's first program; default: stage0 beside this program."`
}

// config takes progress to standard error: what a command prints is its result.
func (f imageFlags) config(line *commandLine, std streams) image.Config {
	return image.Config{StateDir: cmp.Or(f.Images, line.State), Out: std.err, Envd: f.Envd, Stage0: f.Stage0}
}

type imagePrepare struct {
	imageFlags
	Export bool `help:"Print the files as environment variables, for the tests with real machines."`
}

// Run prints where the files are.
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
	Name    string `arg:"" help:"What the image will be called."`
	Tar     string `default:"-" help:"The container's files, as docker export writes them; - is standard input."`
	Replace bool   `help:"Replace an image of that name."`
}

// Run tells on standard error which programs a guest will miss.
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
