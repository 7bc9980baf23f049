package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"wrenn/client"
	"wrenn/internal/plain"
)

// networkRules are the flags that say what a sandbox may reach.
type networkRules struct {
	Network string   `enum:"internet,none,unset" default:"unset" placeholder:"internet|none" help:"What the sandbox may reach apart from --allow and --deny: the whole internet, or nothing; default: internet."`
	Allow   []string `placeholder:"RULE" sep:"none" help:"An address or network that is allowed, also if --network or --deny excludes it; with --network none also a host: example.com, *.example.com, example.com:443. May be repeated."`
	Deny    []string `placeholder:"CIDR" sep:"none" help:"An address or network that is denied; may be repeated."`
	Header  []string `placeholder:"RULE" sep:"none" help:"A header that requests by TLS to a host get outside of the sandbox: 'HOST NAME: TEXT'. $${secrets.NAME} in the text stands for a secret. May be repeated."`
}

// policy returns the policy of the flags; nil if there are none.
func (r networkRules) policy() (*client.NetworkPolicy, error) {
	if r.Network == "unset" && len(r.Allow) == 0 && len(r.Deny) == 0 && len(r.Header) == 0 {
		return nil, nil
	}
	p := &client.NetworkPolicy{Default: client.AllowByDefault, Allow: r.Allow, Deny: r.Deny}
	if r.Network == "none" {
		p.Default = client.DenyByDefault
	}
	for _, text := range r.Header {
		if err := addHeader(p, text); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// addHeader adds the header of a flag to the policy.
func addHeader(p *client.NetworkPolicy, text string) error {
	host, header, found := strings.Cut(strings.TrimSpace(text), " ")
	name, value, colon := strings.Cut(header, ":")
	name = strings.TrimSpace(name)
	if !found || !colon || name == "" {
		return errors.New("--header is 'HOST NAME: TEXT', such as 'api.example.com Authorization: Bearer ${secrets.token}'")
	}
	i := slices.IndexFunc(p.Headers, func(r client.HeaderRule) bool { return r.Host == host })
	if i < 0 {
		i = len(p.Headers)
		p.Headers = append(p.Headers, client.HeaderRule{Host: host, Headers: map[string]string{}})
	}
	p.Headers[i].Headers[name] = strings.TrimSpace(value)
	return nil
}

// headersText is the header rules for people, one a line.
func headersText(rules []client.HeaderRule) string {
	var lines []string
	for _, r := range rules {
		for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
			lines = append(lines, plain.Line(r.Host+" "+name+": "+r.Headers[name]))
		}
	}
	return strings.Join(lines, "\n         ")
}

type networkCommand struct {
	Show    networkPolicyCommand  `cmd:"" default:"withargs" help:"Show or set what a sandbox may reach of the internet."`
	Log     networkLogCommand     `cmd:"" help:"Show what a sandbox reached and was denied."`
	Learn   networkLearnCommand   `cmd:"" help:"Propose a policy from what a sandbox reached and was denied."`
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
  wrenn sandbox network ID --network internet              everything again
  wrenn sandbox network ID --header 'api.example.com Authorization: Bearer ${secrets.token}'
                                                           a secret that the sandbox does not see`
}

// Run shows or sets the policy.
func (c *networkPolicyCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var now *client.NetworkPolicy
	wanted, err := c.policy()
	if err != nil {
		return err
	}
	if wanted != nil {
		now, err = api.SetNetwork(ctx, c.ID, *wanted)
	} else {
		now, err = api.Network(ctx, c.ID)
	}
	if err != nil {
		return err
	}
	return s.print(now, func(w io.Writer) {
		fmt.Fprintf(w, "default  %s\nallow    %s\ndeny     %s\n", now.Default, rulesText(now.Allow), rulesText(now.Deny))
		if len(now.Headers) > 0 {
			fmt.Fprintf(w, "headers  %s\n", headersText(now.Headers))
		}
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
	if len(p.Headers) > 0 {
		hosts := make([]string, len(p.Headers))
		for i, r := range p.Headers {
			hosts[i] = r.Host
		}
		text += ", headers for " + rulesText(hosts)
	}
	return text
}
