package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/alecthomas/kong"
	"github.com/pelletier/go-toml/v2"

	"wrenn.dev"
	"wrenn.dev/client/settings"
	"wrenn.dev/internal/cli/service"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/parts"
	"wrenn.dev/internal/plain"
)

// AfterApply refuses flags that --install would ignore: the service has a file for them.
func (c *upCommand) AfterApply(parsed *kong.Context) error {
	if !c.Install {
		return nil
	}
	for _, part := range parsed.Path {
		if part.Flag != nil && part.Flag.Name != "install" && slices.ContainsFunc(parsed.Selected().Flags, func(f *kong.Flag) bool { return f.Name == part.Flag.Name }) {
			return fmt.Errorf("--install takes no --%s: write %s into %s, and restart the service", part.Flag.Name, part.Flag.Name, service.Places{}.Settings())
		}
	}
	return nil
}

// install makes up a service, and keeps its key for the other commands.
func (*upCommand) install(ctx context.Context, s *session) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var places service.Places
	if err := places.Install(ctx, self, s.did); err != nil {
		return err
	}
	text, err := os.ReadFile(places.Client())
	if err != nil {
		return fmt.Errorf("read the key that the service made: %w", err)
	}
	var made settings.File
	if err := toml.Unmarshal(text, &made); err != nil {
		return fmt.Errorf("%s: %w", places.Client(), err)
	}
	old, err := s.settings()
	if err != nil {
		return err
	}
	path, err := s.save(settings.File{URL: made.URL, Key: made.Key, Contexts: withLocal(old.Contexts, settings.Server{URL: made.URL, Key: made.Key})})
	if err != nil {
		return err
	}
	s.did("key       " + places.Client() + " and " + path + ", mode 0600")
	fmt.Fprintf(s.Out, "Wrenn serves at %s; try: wrenn run -- uname -a\n", plain.Line(made.URL))
	return nil
}

// uninstall removes the service, and says where its data is.
func (c *upCommand) uninstall(ctx context.Context, s *session) error {
	var places service.Places
	state, runDir := c.State, c.RunDir
	if text, err := os.ReadFile(places.Settings()); err == nil {
		var own struct{ State, Run string }
		if err := toml.Unmarshal(text, &own); err != nil {
			return fmt.Errorf("%s: %w", places.Settings(), err)
		}
		state, runDir = cmp.Or(own.State, state), cmp.Or(own.Run, runDir)
	}
	if err := places.Uninstall(ctx, func(ctx context.Context) error { return s.pauseAll(ctx, state, runDir) }, s.did); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(launch.CgroupRoot, launch.CgroupParent)) // empty, or of another Wrenn
	s.did("data stays in " + state + ": sandboxes, images, database, keys; settings stay in " + filepath.Dir(places.Settings()))
	return nil
}

// pauseAll pauses what still runs on this machine, if there is anything.
func (s *session) pauseAll(ctx context.Context, state, runDir string) error {
	machines, err := os.ReadDir(filepath.Join(runDir, "vm"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(machines) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	agent, err := parts.Find("host-agent")
	if err != nil {
		return err
	}
	for _, config := range []string{filepath.Join(state, "host-agent.toml"), "/etc/wrenn/host-agent.toml"} {
		if _, err := os.Stat(config); err != nil {
			continue
		}
		s.did("pausing the sandboxes that run")
		cmd := exec.CommandContext(ctx, agent, "pause", "--config", config)
		cmd.Stdout, cmd.Stderr = s.Err, s.Err
		return cmd.Run()
	}
	return wrenn.Errorf(wrenn.FailedPrecondition, "%s shows that sandboxes run, but there is no configuration of their host agent", filepath.Join(runDir, "vm"))
}

// did prints a line about what was done.
func (s *session) did(line string) { fmt.Fprintln(s.Err, s.paint(s.Err, faint, plain.Line(line))) }
