//go:build root

package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/run"
	"wrenn.dev/internal/testkit"
)

// Sequences of a terminal: xterm's alternate screen, which editors use and leave.
const (
	alternate = "\x1b[?1049h"
	normal    = "\x1b[?1049l"
)

// patience bounds what a program in a sandbox does, on a busy machine too.
const patience = 2 * time.Minute

// seat is wrenn with a terminal, and what was printed on it since the last wait.
type seat struct {
	t    *testing.T
	keys *os.File
	code chan int

	mu      sync.Mutex // guards the fields below
	text    bytes.Buffer
	changed chan struct{} // closed and replaced at every change
}

// sit runs wrenn with a terminal of that size.
func (l *live) sit(cols, rows uint16, args ...string) *seat {
	l.t.Helper()
	keys, screen := openTerminal(l.t)
	s := &seat{t: l.t, keys: keys, code: make(chan int, 1), changed: make(chan struct{})}
	s.resize(cols, rows)
	std := Std{In: screen, Out: screen, Err: screen, Environ: func(name string) string { return l.environ[name] }}
	go s.read()
	go func() {
		args := append([]string{"--url", l.environ["URL"]}, args...)
		s.code <- run.Run(context.WithoutCancel(l.t.Context()), func(ctx context.Context, args []string) error { return Command(ctx, args, std) }, args, screen)
	}()
	return s
}

// openTerminal makes a terminal; see pts(4).
func openTerminal(t *testing.T) (keys, screen *os.File) {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
		testkit.Must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	keys = open("/dev/ptmx")
	testkit.Must(t, unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	testkit.Must(t, err)
	return keys, open(fmt.Sprintf("/dev/pts/%d", number))
}

func (s *seat) read() {
	buffer := make([]byte, 4096)
	for {
		n, err := s.keys.Read(buffer)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.text.Write(buffer[:n])
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
}

// resize sets the terminal's size, and tells this process, which it does not control.
func (s *seat) resize(cols, rows uint16) {
	s.t.Helper()
	testkit.Must(s.t, unix.IoctlSetWinsize(int(s.keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}))
	testkit.Must(s.t, syscall.Kill(os.Getpid(), syscall.SIGWINCH))
}

// types types keys, waits until each of want was printed, in this order, and returns
// what was printed until then.
func (s *seat) types(keys string, want ...string) string {
	s.t.Helper()
	if _, err := s.keys.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		text, changed := s.text.String(), s.changed
		end := inOrder(text, want)
		if end >= 0 {
			s.text.Next(end)
		}
		s.mu.Unlock()
		if end >= 0 {
			return text[:end]
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("after %q there is no %q on the terminal:\n%q", keys, want, text)
		}
	}
}

// inOrder returns where the last of the texts ends, and -1 unless text has all in this order.
func inOrder(text string, all []string) int {
	end := 0
	for _, each := range all {
		at := strings.Index(text[end:], each)
		if at < 0 {
			return -1
		}
		end += at + len(each)
	}
	return end
}

func (s *seat) end() int {
	s.t.Helper()
	select {
	case code := <-s.code:
		return code
	case <-time.After(patience):
		s.t.Fatal("wrenn does not end")
	}
	return 0
}

// TestTerminal uses an editor and a process viewer, as a person does: the alternate
// screen, sizes, Ctrl-C, text and bytes that are not ASCII, and colors.
func TestTerminal(t *testing.T) {
	vim, htop := testkit.Program(t, "vim"), testkit.Program(t, "htop")
	l := newLive(t)
	l.environ["TERM"] = "xterm-unheard-of" // with which neither would start
	l.output("", "sandbox", "create", "--name", "web")
	s := l.sit(100, 30, "sandbox", "shell", "-u", "root", "web")
	s.types("PS1=; cd "+l.dir+"; echo at''home\r", "athome")
	s.types("echo it is $TERM\r", "it is xterm-256color")
	s.edits(vim, filepath.Join(l.dir, "notes"))
	s.watches(htop)
	s.types("exit 7\r")
	if code := s.end(); code != 7 {
		t.Errorf("exit code %d, want that of the shell", code)
	}
}

// edits writes a file with vim.
func (s *seat) edits(vim, file string) {
	s.t.Helper()
	s.types(vim+" -Nu NONE -i NONE "+file+"\r", alternate, "[New]")
	s.types(":set columns?\r", "columns=100")
	s.types(":au VimResized * echo 'now ' . &columns . 'x' . &lines\r", "lines")
	s.resize(131, 41)
	s.types("", "now 131x41")
	s.types("ihello w\u00f6rld \u4f60\u597d\x1b", "\u597d")
	s.types(":w\r", "written")
	s.types(":call setline(1, nr2char(0xe9))|w ++enc=latin1 "+file+".8bit\r", "8bit\" ", "written")
	s.types(":qa!\r", normal)
	for name, want := range map[string]string{file: "hello w\u00f6rld \u4f60\u597d\n", file + ".8bit": "\xe9\n"} {
		if got, err := os.ReadFile(name); string(got) != want || err != nil {
			s.t.Errorf("%s has %q, %v; want %q", name, got, err, want)
		}
	}
	s.types("cat "+file+".8bit; printf '\\200\\377'; echo d''one\r", "\xe9\r\n", "\x80\xffdone") // bytes that are no UTF-8 arrive unchanged
}

const ctrlC = "\x03"

// watches looks at the processes with htop, which ends at a key, and again at Ctrl-C.
func (s *seat) watches(htop string) {
	s.t.Helper()
	for _, leave := range []string{"q", ctrlC} {
		shown := s.types("HTOPRC=/dev/null "+htop+"\r", alternate, "Tasks", "PID")
		if !strings.Contains(shown, "\x1b[3") && !strings.Contains(shown, "\x1b[4") {
			s.t.Errorf("htop shows no colors: %q", shown)
		}
		s.types("\x1bOP", "Help") // F1, as the terminal sends it in its application mode
		s.types(" ", "PID")
		s.types(leave, normal)
	}
	s.types("echo it was $?\r", "it was ")
}
