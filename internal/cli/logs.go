package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/programs"
	"wrenn.dev/internal/run"
)

type logsCommand struct {
	Follow  bool   `short:"f" help:"Print new output until the sandbox, or the program, ends."`
	Console bool   `xor:"which" help:"The console: output of the kernel, init and guest agent. This is the default."`
	Program count  `xor:"which" placeholder:"PID" help:"What a program printed that exec -d started."`
	Tail    count  `placeholder:"N" help:"Only the last N lines; with -f also what follows."`
	Since   span   `placeholder:"TIME" help:"Only what the console printed in the last TIME, as 5m. A program's log has no times."`
	ID      string `arg:"" complete:"sandbox" help:"The sandbox. The end of the console of a failed sandbox is kept for a while."`
}

// Run prints the console unchanged; on a terminal it removes control characters.
func (c *logsCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	if c.Program > 0 {
		if c.Since.Duration > 0 {
			return fmt.Errorf("%w: --since is for the console: the log of a program has no times; use --tail", run.ErrUsage)
		}
		return c.program(ctx, s, api)
	}
	var console io.ReadCloser
	err = s.during(ctx, "reading the console", func(ctx context.Context) (err error) {
		console, err = api.Logs(ctx, c.ID, c.options(time.Now()))
		return err
	})
	if err != nil {
		return err
	}
	defer console.Close()
	if c.Tail > 0 {
		if c.Follow {
			return fmt.Errorf("%w: --tail with -f is for programs: the console's end is unknown while it is followed", run.ErrUsage)
		}
		return c.last(s, console)
	}
	return c.show(ctx, s, console)
}

func (c *logsCommand) options(now time.Time) client.LogsOptions {
	opts := client.LogsOptions{Follow: c.Follow}
	if c.Since.Duration > 0 {
		opts.Since = now.Add(-c.Since.Duration)
	}
	return opts
}

// show prints a text as it arrives.
func (c *logsCommand) show(ctx context.Context, s *session, console io.Reader) error {
	if s.json() {
		return s.jsonLines(console)
	}
	out := s.Out
	if terminal(s.Out) != nil {
		out = harmless{s.Out}
	}
	_, err := io.Copy(out, console)
	if err != nil && c.Follow && client.CodeOf(err) == client.Unavailable && ctx.Err() == nil {
		return fmt.Errorf("%w\nContinue with: wrenn sandbox logs --follow %s", err, c.ID)
	}
	return err
}

// maxConsole bounds the console that --tail reads; hosts keep less.
const maxConsole = 64 << 20

// last prints the last lines of a console.
func (c *logsCommand) last(s *session, console io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(console, maxConsole))
	if err != nil {
		return err
	}
	lines := slices.Collect(bytes.Lines(text))
	return c.show(context.Background(), s, bytes.NewReader(bytes.Join(lines[max(0, len(lines)-int(c.Tail)):], nil)))
}

// programScript prints the log of the program $1: with $2 its last lines, and with $3
// what follows, until the program ends if tail can tell.
const programScript = `f=` + programs.Dir + `/$1; [ -e "$f" ] || { echo "no program $1 was started by exec -d" >&2; exit 1; }
	from=+1; [ "$2" = 0 ] || from=$2; set -- "$1" "$from" "$3"
	[ "$3" = true ] || exec tail -n "$2" "$f"
	if tail --help 2>&1 | grep -q -e --pid; then exec tail -n "$2" -f --pid="$1" "$f"; fi; exec tail -n "$2" -f "$f"`

// program prints the output of a program that exec -d started.
func (c *logsCommand) program(ctx context.Context, s *session, api *client.Client) error {
	stream, err := api.Start(ctx, c.ID, client.Command{
		Cmd: "/bin/sh", User: "root",
		Args: []string{"-c", programScript, "sh", strconv.Itoa(int(c.Program)), strconv.Itoa(int(c.Tail)), strconv.FormatBool(c.Follow)},
	}, client.StartOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()                                        // what it sent was read
	defer context.AfterFunc(ctx, func() { _ = stream.Signal(client.SIGKILL) })() // the tail has no other use
	reader, writer := io.Pipe()
	var exit client.Exit
	go func() {
		var err error
		exit, err = stream.Copy(writer, s.Err)
		writer.CloseWithError(err) // nil is io.EOF
	}()
	err = c.show(ctx, s, reader)
	_ = reader.Close() // ends Copy, when printing failed
	if err != nil {
		return err
	}
	return exitOf(exit)
}

// jsonLines prints each line of a text as an object, as it arrives.
func (s *session) jsonLines(text io.Reader) error {
	lines := bufio.NewReader(text)
	encoder := json.NewEncoder(s.Out)
	encoder.SetEscapeHTML(false)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 && (err == nil || errors.Is(err, io.EOF) || errors.Is(err, bufio.ErrBufferFull)) {
			entry := map[string]string{"line": strings.TrimRight(string(line), "\r\n")}
			if err := encoder.Encode(entry); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull): // a long line is several
			return err
		}
	}
}

// harmless is a writer that removes what could control a terminal.
type harmless struct{ w io.Writer }

func (h harmless) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		text, end := strings.CutSuffix(line, "\n")
		text = plain.Line(strings.NewReplacer("\r", "", "\t", "    ").Replace(text))
		if end {
			text += "\n"
		}
		if _, err := io.WriteString(h.w, text); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
