package sandbox

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"

	"wrenn"
	"wrenn/internal/vm"
)

// Console returns the end of what the kernel, the init and the agent of a
// sandbox printed, bounded; the guest chose what is in it. The console of a
// sandbox that failed or stopped by itself, or whose launch failed, is kept for a
// while. More reports whether more may come. NotFound when none is known.
func (m *Manager) Console(id wrenn.SandboxID) (text string, more bool, err error) {
	s, err := m.Get(id)
	if err == nil {
		more = !s.Info().Status.ended()
		if text, ok := s.console.Text(); ok {
			return text, more, nil
		}
	}
	kept, readErr := m.consoles.Read(id)
	switch {
	case readErr == nil:
		return kept, more, nil
	case !errors.Is(readErr, fs.ErrNotExist):
		return "", false, readErr
	case err != nil:
		return "", false, wrenn.Errorf(wrenn.NotFound, "no console of sandbox %s is kept: the sandbox was destroyed, or ended long ago", id)
	}
	return "", more, nil
}

// keepConsole keeps the end of the console, so that a user can see why the
// sandbox ended. Cause may hold a console if there never was a machine. A failure
// does not stop the caller.
func (s *Sandbox) keepConsole(ctx context.Context, cause error) {
	text, _ := s.console.Text()
	if exit, ok := errors.AsType[*vm.ExitError](cause); ok {
		text = cmp.Or(text, exit.Console)
	}
	if err := s.m.consoles.Keep(s.id, text); err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot keep a console", slog.Any("err", err))
	}
}
