package console

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
)

// machine is a machine that has nothing but a console.
type machine struct {
	vm.Machine
	timed []vm.ConsolePart
	text  string // the newest
}

func (m *machine) Console() string { return m.text }

func (m *machine) ConsoleParts() []vm.ConsolePart {
	return append(slices.Clone(m.timed), vm.ConsolePart{Text: m.text})
}

// mute is a machine without a console.
type mute struct{ vm.Machine }

func TestLogJoinsTheConsolesOfAllMachines(t *testing.T) {
	var l Log
	if text, ok := l.Text(); ok || text != "" {
		t.Errorf("Text() of no machine = %q, %v", text, ok)
	}
	l.Attach(&mute{})
	if _, ok := l.Text(); ok {
		t.Error("a machine without a console counts")
	}
	first, second := &machine{text: "one "}, &machine{text: "two "}
	l.Attach(first)
	first.text += "more "
	l.Attach(first)
	l.Attach(second)
	second.text += "end"
	if text, ok := l.Text(); !ok || text != "one more two end" {
		t.Errorf("Text() = %q, %v", text, ok)
	}
	second.text = strings.Repeat("x", maxText+1)
	if text, _ := l.Text(); len(text) != maxText {
		t.Errorf("Text() has %d bytes, want at most %d", len(text), maxText)
	}
}

func TestLogSinceATime(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 1, 2, 15, minute, 0, 0, time.UTC) }
	var l Log
	l.Attach(&machine{timed: []vm.ConsolePart{{Until: at(1), Text: "one "}, {Until: at(2), Text: "two "}}})
	l.Attach(&machine{timed: []vm.ConsolePart{{Until: at(4), Text: "three "}}, text: "now"})
	for since, want := range map[time.Time]string{
		{}: "one two three now", at(0): "one two three now", at(1): "two three now", at(3): "three now", at(4): "now", time.Now().Add(time.Hour): "now",
	} {
		if text, _ := l.Since(since); text != want {
			t.Errorf("Since(%s) = %q, want %q", since, text, want)
		}
	}
}

func TestStoreKeepsTheEnd(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "consoles")}
	id := wrenn.NewSandboxID()
	testkit.Must(t, s.Keep(id, ""))
	if text, _, err := s.Read(id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read() of an empty console = %q, %v", text, err)
	}
	testkit.Must(t, s.Keep(id, strings.Repeat("x", maxKept)+"end"))
	if text, _, err := s.Read(id); err != nil || len(text) != maxKept || !strings.HasSuffix(text, "xend") {
		t.Errorf("Read() = %d bytes, %v", len(text), err)
	}
}

func TestStoreRemovesTheOldest(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	for i := range maxFiles + 3 {
		path := s.path(wrenn.SandboxID(fmt.Sprintf("i%020d", i)))
		testkit.Must(t, os.WriteFile(path, nil, 0o600))
		when := time.Unix(int64(1000+i), 0)
		testkit.Must(t, os.Chtimes(path, when, when))
	}
	testkit.Must(t, s.Keep(wrenn.NewSandboxID(), "the newest"))
	left, err := filepath.Glob(filepath.Join(s.Dir, "*"))
	if err != nil || len(left) != maxFiles || !strings.HasSuffix(left[0], "004") {
		t.Errorf("%d are left, from %s, %v", len(left), left[0], err)
	}
}
