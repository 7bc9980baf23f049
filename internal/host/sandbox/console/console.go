// Package console keeps what guests print: of each sandbox that runs, over all
// its machines, and in files the end of it for sandboxes that have ended.
package console

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/vm"
)

const (
	// maxText bounds what Log.Text returns; drivers keep about as much.
	maxText = 256 << 10
	// maxKept is how much of one console a Store keeps, and maxFiles of how many:
	// 16 MiB in all.
	maxKept  = 64 << 10
	maxFiles = 256
)

// Log is what the guest of one sandbox printed on the consoles of its machines,
// one after the other. The zero value has had no machine. It is safe for
// concurrent use.
type Log struct {
	mu      sync.Mutex // guards what follows
	before  string     // of earlier machines
	machine vm.ConsoleReader
}

// Attach continues the log with another machine's console. A machine that is
// attached already, or has no console, changes nothing.
func (l *Log) Attach(machine vm.Machine) {
	reader, ok := machine.(vm.ConsoleReader)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.machine == reader {
		return
	}
	if l.machine != nil {
		l.before = lastBytes(l.before+l.machine.Console(), maxKept)
	}
	l.machine = reader
}

// Text returns the end of the log, and whether it has had a machine.
func (l *Log) Text() (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.machine == nil {
		return "", false
	}
	return lastBytes(l.before+l.machine.Console(), maxText), true
}

func lastBytes(text string, n int) string { return text[max(0, len(text)-n):] }

// Store keeps the ends of the newest consoles in files, one for each sandbox. It
// is safe for concurrent use.
type Store struct {
	Dir string // made when it is needed
}

func (s Store) path(id wrenn.SandboxID) string { return filepath.Join(s.Dir, string(id)) }

// Keep keeps the end of text, in place of what was kept for the sandbox before,
// and removes the oldest files if there are too many. An empty text is not kept.
func (s Store) Keep(id wrenn.SandboxID, text string) error {
	if text == "" {
		return nil
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(s.path(id), []byte(lastBytes(text, maxKept)), 0o600); err != nil {
		return err
	}
	return s.removeOldest()
}

// Read returns what is kept for the sandbox: an fs.ErrNotExist if there is none.
func (s Store) Read(id wrenn.SandboxID) (string, error) {
	text, err := os.ReadFile(s.path(id))
	return string(text), err
}

func (s Store) removeOldest() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil || len(entries) <= maxFiles {
		return err
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it is gone
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var errs []error
	for _, info := range files[min(len(files), maxFiles):] {
		if err := os.Remove(filepath.Join(s.Dir, info.Name())); !errors.Is(err, fs.ErrNotExist) { // another Keep may be first
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
