package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"wrenn/client"
	"wrenn/internal/plain"
)

// networkRules are the flags that say what a sandbox may reach.
type networkRules struct {
	Network string   `enum:"internet,none,unset" default:"unset" placeholder:"internet|none" help:"What the sandbox may reach apart from --allow and --deny: the whole internet, or nothing; default: internet."`
	Allow   []string `placeholder:"RULE" sep:"none" help:"An address or network that is allowed, also if --network or --deny excludes it; with --network none also a host: example.com, *.example.com, example.com:443. May be repeated."`
	Deny    []string `placeholder:"CIDR" sep:"none" help:"An address or network that is denied; may be repeated."`
}

// policy returns the policy of the flags; nil if there are none.
func (r networkRules) policy() *client.NetworkPolicy {
	if r.Network == "unset" && len(r.Allow) == 0 && len(r.Deny) == 0 {
		return nil
	}
	p := &client.NetworkPolicy{Default: client.AllowByDefault, Allow: r.Allow, Deny: r.Deny}
	if r.Network == "none" {
		p.Default = client.DenyByDefault
	}
	return p
}

type networkCommand struct {
	Show    networkPolicyCommand  `cmd:"" default:"withargs" help:"Show or set what a sandbox may reach of the internet."`
	Log     networkLogCommand     `cmd:"" help:"Show what a sandbox reached and was denied."`
	Explain networkExplainCommand `cmd:"" help:"Report whether a sandbox may reach a host, and why."`
}

type networkPolicyCommand struct {
	ID string `arg:"" complete:"sandbox" help:"The sandbox, running or paused."`
	networkRules
}

// Help is shown below the usage.
func (*networkPolicyCommand) Help() string {
	return `Without flags it shows what the sandbox may reach. With any it replaces the whole
policy, at once: connections that stay allowed continue. Private and reserved
networks are closed to every sandbox.

  wrenn sandbox network ID --network none                  nothing
  wrenn sandbox network ID --network none --allow 1.1.1.1  one address alone
  wrenn sandbox network ID --network none --allow pypi.org --allow '*.pythonhosted.org'
                                                           some hosts alone, by TLS and HTTP/1
  wrenn sandbox network ID --network internet              everything again`
}

// Run shows or sets the policy.
func (c *networkPolicyCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var now *client.NetworkPolicy
	if wanted := c.policy(); wanted != nil {
		now, err = api.SetNetwork(ctx, c.ID, *wanted)
	} else {
		now, err = api.Network(ctx, c.ID)
	}
	if err != nil {
		return err
	}
	return s.print(now, func(w io.Writer) {
		fmt.Fprintf(w, "default  %s\nallow    %s\ndeny     %s\n", now.Default, rulesText(now.Allow), rulesText(now.Deny))
	})
}

func rulesText(rules []string) string {
	if len(rules) == 0 {
		return "-"
	}
	return plain.Line(strings.Join(rules, " "))
}

// networkLine is a policy in one line of "sandbox get".
func networkLine(p *client.NetworkPolicy) string {
	text := string(p.Default) + " by default"
	if len(p.Allow) > 0 {
		text += ", allow " + rulesText(p.Allow)
	}
	if len(p.Deny) > 0 {
		text += ", deny " + rulesText(p.Deny)
	}
	return text
}
