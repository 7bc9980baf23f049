// Package console keeps what guests print: of each sandbox that runs, over all
// its machines, and in files the end of it for sandboxes that have ended.
package console

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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
	mu      sync.Mutex       // guards what follows
	before  []vm.ConsolePart // of earlier machines; each has a time
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
		l.before = lastParts(l.parts(), maxKept)
		for i, p := range l.before {
			if p.Until.IsZero() { // its newest
				l.before[i].Until = time.Now()
			}
		}
	}
	l.machine = reader
}

// Text returns the end of the log, and whether it has had a machine.
func (l *Log) Text() (string, bool) { return l.Since(time.Time{}) }

// Since is Text of what was printed after that time: what was printed within about a
// second before it may be included.
func (l *Log) Since(after time.Time) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.machine == nil {
		return "", false
	}
	var text strings.Builder
	for _, p := range lastParts(l.parts(), maxText) {
		if p.Until.IsZero() || p.Until.After(after) {
			text.WriteString(p.Text)
		}
	}
	return text.String(), true
}

// parts returns the log with when it was printed. The caller must hold mu.
func (l *Log) parts() []vm.ConsolePart { return slices.Concat(l.before, l.machine.ConsoleParts()) }

// lastParts returns the last n bytes of the parts.
func lastParts(parts []vm.ConsolePart, n int) []vm.ConsolePart {
	for i, first := range slices.Backward(parts) {
		if n -= len(first.Text); n <= 0 {
			first.Text = first.Text[-n:]
			return append([]vm.ConsolePart{first}, parts[i+1:]...)
		}
	}
	return parts
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

// Read returns what is kept for the sandbox, and since when: an fs.ErrNotExist if there
// is none.
func (s Store) Read(id wrenn.SandboxID) (text string, kept time.Time, err error) {
	data, err := os.ReadFile(s.path(id))
	if err != nil {
		return "", time.Time{}, err
	}
	info, err := os.Stat(s.path(id))
	if err != nil {
		return "", time.Time{}, err
	}
	return string(data), info.ModTime(), nil
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
