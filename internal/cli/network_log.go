package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

type networkLogCommand struct {
	Follow bool   `short:"f" help:"Continue with new events until the sandbox ends."`
	ID     string `arg:"" complete:"sandbox" help:"The sandbox, running or paused."`
}

// Help is shown below the usage.
func (*networkLogCommand) Help() string {
	return `The last 300 to 400 events: connections by name and questions for names, and the first
packets of connections that the policy decides by address, at most 10 of each kind a
second. With --json each event is a line.`
}

// followWait is how long one request waits for an event.
const followWait = 20 * time.Second

// Run prints events until there are no more, or with Follow until a request fails.
func (c *networkLogCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	opts := client.NetworkLogOptions{}
	for {
		log, err := api.NetworkLog(ctx, c.ID, opts)
		if err != nil {
			return err
		}
		if log.Dropped > 0 {
			fmt.Fprintf(s.Err, "%d events are lost: there were too many\n", log.Dropped)
		}
		for i := range log.Events {
			if err := c.show(s, &log.Events[i]); err != nil {
				return err
			}
			opts.After = log.Events[i].Seq
		}
		if !c.Follow {
			return nil
		}
		opts.Wait = followWait
	}
}

// show prints an event as a line.
func (c *networkLogCommand) show(s *session, e *client.NetworkEvent) error {
	if s.json() {
		return json.NewEncoder(s.Out).Encode(e)
	}
	_, err := fmt.Fprintln(s.Out, eventLine(e))
	return err
}

// eventLine is an event for people. The sandbox chose the name.
func eventLine(e *client.NetworkEvent) string {
	to := cmp.Or(e.Name, e.Address)
	if e.Port != 0 {
		to = net.JoinHostPort(to, strconv.Itoa(e.Port))
	}
	line := fmt.Sprintf("%s  %-7s  %-4s  %s", e.Time.Local().Format(time.DateTime), e.Verdict, e.Protocol, to)
	if e.Name != "" && e.Address != "" {
		line += " (" + e.Address + ")"
	}
	if e.Verdict == "ended" {
		line += fmt.Sprintf("  sent %d, received %d bytes in %s", e.SentBytes, e.ReceivedBytes, time.Duration(e.DurationMs)*time.Millisecond)
	}
	if e.Via != "" {
		line += "  via " + e.Via
	}
	if e.Reason != "" {
		line += "  " + e.Reason
	}
	return plain.Line(line)
}

type networkExplainCommand struct {
	ID   string `arg:"" complete:"sandbox" help:"The sandbox, running or paused."`
	Host string `arg:"" placeholder:"HOST[:PORT]" help:"A name or an IPv4 address, and a port; without one it is any."`
}

// Help is shown below the usage.
func (*networkExplainCommand) Help() string {
	return `It reports whether the sandbox may reach the host, and which rule decides: one of the sandbox's policy,
of its team's or its template's, or a network that the host closes to all sandboxes:

  wrenn sandbox network explain ID pypi.org:443`
}

// Run prints the explanation.
func (c *networkExplainCommand) Run(ctx context.Context, s *session) error {
	host, port := c.Host, 0
	if name, text, err := net.SplitHostPort(c.Host); err == nil {
		if port, err = strconv.Atoi(text); err != nil || port < 1 || port > 65535 {
			return fmt.Errorf("%q is not a port: write one of 1 to 65535, as in pypi.org:443", text)
		}
		host = name
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	e, err := api.ExplainNetwork(ctx, c.ID, host, port)
	if err != nil {
		return err
	}
	return s.print(e, func(w io.Writer) { explain(w, e) })
}

func explain(w io.Writer, e *client.NetworkExplanation) {
	fmt.Fprintf(w, "%s: %s\n", verdict(e.Allowed), plain.Line(e.Reason))
	if e.Rule != "" {
		fmt.Fprintf(w, "rule  %s\n", ruleText(e.Layer, e.Rule))
	}
	for _, a := range e.Addresses {
		fmt.Fprintf(w, "%-15s  %-7s  %s\n", plain.Line(a.Address), verdict(a.Allowed), ruleText(a.Layer, a.Rule))
	}
}

// ruleText is a rule and whose it is, which an older server does not say.
func ruleText(layer, rule string) string {
	if layer == "" {
		return plain.Line(rule)
	}
	return plain.Line(rule + " (" + layer + ")")
}

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}
