package sandbox

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"wrenn"
	"wrenn/internal/durable"
	"wrenn/internal/vm"
)

const (
	// maxConsole bounds what Console returns; drivers keep about as much.
	maxConsole = 256 << 10
	// keptConsole is how much of the console of a sandbox that ended is kept,
	// and keptConsoles of how many: 16 MiB in all.
	keptConsole  = 64 << 10
	keptConsoles = 256
)

// screen is what the guest of a sandbox showed on its console. The machines
// that it ran in follow one another.
type screen struct {
	mu     sync.Mutex // guards what follows
	before string
	now    vm.ConsoleReader // nil: there was no machine yet
}

// show begins with another machine. One that is shown already stays.
func (s *screen) show(machine vm.Machine) {
	reader, ok := machine.(vm.ConsoleReader)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == reader {
		return
	}
	if s.now != nil {
		s.before = lastBytes(s.before+s.now.Console(), keptConsole)
	}
	s.now = reader
}

func (s *screen) text() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return "", false
	}
	return lastBytes(s.before+s.now.Console(), maxConsole), true
}

func lastBytes(text string, n int) string { return text[max(0, len(text)-n):] }

// Console is the end of what the kernel, the init and the agent of a sandbox
// printed, bounded; the guest chose what is in it. Of a sandbox that failed or
// stopped by itself, or whose launch failed, it can be read for a while. More
// says that more may come. NotFound when nothing is known.
func (m *Manager) Console(id wrenn.SandboxID) (text string, more bool, err error) {
	s, err := m.Get(id)
	if err == nil {
		switch s.Info().Status {
		case StatusStopped, StatusFailed, StatusQuarantined, statusUnmade:
		default:
			more = true
		}
		if text, ok := s.screen.text(); ok {
			return text, more, nil
		}
	}
	kept, readErr := os.ReadFile(m.consolePath(id))
	switch {
	case readErr == nil:
		return string(kept), more, nil
	case !errors.Is(readErr, fs.ErrNotExist):
		return "", false, readErr
	case err != nil:
		return "", false, wrenn.Errorf(wrenn.NotFound, "nothing is kept of what sandbox %s printed: it was destroyed, or ended long ago", id)
	}
	return "", more, nil
}

func (m *Manager) consoles() string { return filepath.Join(m.cfg.StateDir, "consoles") }

func (m *Manager) consolePath(id wrenn.SandboxID) string {
	return filepath.Join(m.consoles(), string(id))
}

// keepConsole keeps the end of the console for those who ask why the sandbox
// ended, when it may be gone itself. Cause may hold it if there never was a
// machine. It is worth having and nothing to fail for.
func (s *Sandbox) keepConsole(ctx context.Context, cause error) {
	text, _ := s.screen.text()
	if exit, ok := errors.AsType[*vm.ExitError](cause); ok {
		text = cmp.Or(text, exit.Console)
	}
	if text == "" {
		return
	}
	err := os.MkdirAll(s.m.consoles(), 0o700)
	if err == nil {
		err = durable.WriteFile(s.m.consolePath(s.id), []byte(lastBytes(text, keptConsole)), 0o600)
	}
	if err == nil {
		err = s.m.dropOldConsoles()
	}
	if err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "keep a console", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
}

// dropOldConsoles removes the oldest beyond keptConsoles.
func (m *Manager) dropOldConsoles() error {
	entries, err := os.ReadDir(m.consoles())
	if err != nil || len(entries) <= keptConsoles {
		return err
	}
	var kept []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it is gone
			kept = append(kept, info)
		}
	}
	slices.SortFunc(kept, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var errs []error
	for _, info := range kept[min(len(kept), keptConsoles):] {
		if err := os.Remove(filepath.Join(m.consoles(), info.Name())); !errors.Is(err, fs.ErrNotExist) { // somebody else drops, too
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
