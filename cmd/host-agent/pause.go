package main

import (
	"context"
	"errors"
	"fmt"

	"wrenn.dev/internal/host"
)

type pauseCommand struct {
	Config string `type:"path" help:"The configuration of the agent, a TOML file; default: built-in defaults."`
}

// Run pauses all sandboxes while no agent serves, and releases what they took of this
// machine besides its disk. The next agent finds them paused. Twice is allowed.
func (c *pauseCommand) Run(ctx context.Context, line *commandLine, std streams) (err error) {
	cfg, err := readConfig(c.Config, line.State)
	if err != nil {
		return err
	}
	log, err := cfg.logger(std.err)
	if err != nil {
		return err
	}
	hostConfig := cfg.host(std.err, log)
	if hostConfig.Objects, err = cfg.Store.open(); err != nil {
		return err
	}
	h, err := host.Open(ctx, hostConfig)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
	running := h.Manager.Live()
	if err := h.Manager.PauseAll(ctx); err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "paused %d sandboxes\n", running-h.Manager.Live())
	return err
}
