package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"wrenn.dev/client"
	"wrenn.dev/internal/cli/verify"
	"wrenn.dev/internal/plain"
)

type verifyCommands struct {
	Fork verifyForkCommand `cmd:"" help:"Fork a new sandbox and report what its copies share: random numbers, keys, ids, time, connections."`
}

type verifyForkCommand struct {
	Count    int    `short:"n" default:"3" placeholder:"N" help:"Number of copies to make and compare; default: 3."`
	Template string `short:"t" placeholder:"NAME" help:"The template to start from; default: base. Node is checked if the template has it."`
	Outside  string `placeholder:"HOST:PORT" help:"An HTTP server on the internet; a connection to it is kept open across the fork."`
	Keep     bool   `help:"Keep the sandboxes for inspection."`
}

// Run fails when a value repeats that must not.
func (c *verifyForkCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var doing atomic.Value
	doing.Store("looking at the server")
	end := s.progress(func() string { return doing.Load().(string) })
	report, err := verify.Fork(ctx, forker{api}, verify.Options{
		Count: c.Count, Template: c.Template, Outside: c.Outside, Keep: c.Keep, Progress: func(what string) { doing.Store(what) },
	})
	end()
	if report == nil {
		return err
	}
	err = errors.Join(err, s.print(report, func(w io.Writer) { s.forkReport(w, report) }))
	if !report.OK {
		return errors.Join(err, exitCode(1))
	}
	return err
}

// forker adapts the client to verify.API.
type forker struct{ *client.Client }

// Fork returns the ids of the copies that run, and an error when others do not.
func (f forker) Fork(ctx context.Context, id string, n int) ([]string, error) {
	forked, err := f.ForkSandbox(ctx, id, client.Fork{Count: n})
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, n)
	for _, sb := range forked.Sandboxes {
		ids = append(ids, sb.ID)
	}
	for _, failed := range forked.Errors {
		err = errors.Join(err, &client.Error{Code: failed.Code, Message: "copy " + failed.ID + ": " + failed.Message})
	}
	return ids, err
}

// forkReport writes the report as text: the results by group, then the advice for
// each kind of warning once.
func (s *session) forkReport(w io.Writer, r *verify.Report) {
	fmt.Fprintf(w, "parent  %s\ncopies  %s\nguest   %s\n", r.Parent, strings.Join(r.Copies, " "), guest(r.Guest))
	colors := map[verify.Verdict]string{verify.Good: green, verify.Warning: yellow, verify.Failed: red, verify.Skipped: faint}
	group, failed, warned := "", 0, map[string]bool{}
	var sections []verify.Result
	for _, result := range r.Results {
		if result.Group != group {
			group = result.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		verdict := s.paint(w, colors[result.Verdict], fmt.Sprintf("%-7s", result.Verdict))
		fmt.Fprintf(w, "  %s  %-42s  %s\n", verdict, result.Title, plain.Line(result.Found))
		if result.Verdict == verify.Failed {
			failed++
		}
		if result.See != "" && !warned[result.See] {
			warned[result.See] = true
			sections = append(sections, result)
		}
	}
	if len(sections) > 0 {
		fmt.Fprintln(w, "\nWhat is the same by nature, and what to do about it:")
	}
	for _, result := range sections {
		fmt.Fprintf(w, "  %s\n    %s\n", result.See, result.Do)
	}
	conclusion := s.paint(w, green, "Nothing repeats that must differ.")
	if failed > 0 {
		conclusion = s.paint(w, red, fmt.Sprintf("%d of %d checks FAILED.", failed, len(r.Results)))
	}
	fmt.Fprintf(w, "\n%s\n", conclusion)
}

// guest formats the versions of a guest's programs in one line.
func guest(has map[string]string) string {
	var out []string
	for _, name := range []string{"python", "node", "openssl"} {
		out = append(out, name+" "+plain.Line(cmp.Or(has[name], "none")))
	}
	return strings.Join(out, " · ")
}
