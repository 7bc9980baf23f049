package main

import (
	"context"
	"fmt"

	"wrenn/internal/image"
)

type imageCommands struct {
	Prepare imagePrepare `cmd:"" help:"Make the default image, or find it made."`
}

type imagePrepare struct {
	Export bool   `help:"Print the files as environment variables, for the tests with real machines."`
	Images string `type:"path" help:"Directory for guest images, if not --state."`
	Envd   string `type:"existingfile" help:"The guest's agent; default: envd beside this program."`
	Stage0 string `type:"existingfile" help:"The guest's first program; default: stage0 beside this program."`
}

// Run prints the files; how far it is goes to standard error.
func (c *imagePrepare) Run(ctx context.Context, line *commandLine, std streams) error {
	state := line.State
	if c.Images != "" {
		state = c.Images
	}
	guest, err := image.Prepare(ctx, image.Config{StateDir: state, Out: std.err, Envd: c.Envd, Stage0: c.Stage0})
	if err != nil {
		return err
	}
	if c.Export {
		return guest.Export(std.out)
	}
	_, err = fmt.Fprintf(std.out, "kernel  %s\ninitrd  %s\nrootfs  %s\n", guest.Kernel, guest.Initrd, guest.RootFS)
	return err
}
