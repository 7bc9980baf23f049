package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"wrenn/client"
	"wrenn/internal/plain"
)

type logsCommand struct {
	Follow bool   `short:"f" help:"Print new output until the sandbox ends."`
	ID     string `arg:"" complete:"sandbox" help:"The sandbox. The end of the console of a failed sandbox is kept for a while."`
}

// Run prints the console unchanged; on a terminal it removes control characters.
func (c *logsCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var console io.ReadCloser
	err = s.during(ctx, "reading the console", func(ctx context.Context) (err error) {
		console, err = api.Logs(ctx, c.ID, client.LogsOptions{Follow: c.Follow})
		return err
	})
	if err != nil {
		return err
	}
	defer console.Close()
	if s.json() {
		return s.jsonLines(console)
	}
	out := s.Out
	if terminal(s.Out) != nil {
		out = harmless{s.Out}
	}
	if _, err = io.Copy(out, console); err != nil && c.Follow && client.CodeOf(err) == client.Unavailable && ctx.Err() == nil {
		return fmt.Errorf("%w\nContinue with: wrenn sandbox logs --follow %s", err, c.ID)
	}
	return err
}

// jsonLines prints each line of a text as an object, as it arrives.
func (s *session) jsonLines(text io.Reader) error {
	lines := bufio.NewReader(text)
	encoder := json.NewEncoder(s.Out)
	encoder.SetEscapeHTML(false)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 && (err == nil || err == io.EOF || errors.Is(err, bufio.ErrBufferFull)) { //nolint:errorlint // an end is not wrapped
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
