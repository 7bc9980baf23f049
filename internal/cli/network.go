package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

// networkLists are the flags that say what sandboxes may reach.
type networkLists struct {
	Network string   `enum:"internet,none,unset" default:"unset" placeholder:"internet|none" help:"What may be reached apart from --allow and --deny: the whole internet, or nothing; default: internet."`
	Allow   []string `placeholder:"RULE" sep:"none" help:"An address or network that is allowed, also if --network or --deny excludes it; with --network none also a host: example.com, *.example.com, example.com:443. May be repeated."`
	Deny    []string `placeholder:"RULE" sep:"none" help:"An address, a network or a host that is denied, written as for --allow; may be repeated."`
}

// lists returns the policy of the flags; nil if there are none.
func (r networkLists) lists() *client.NetworkPolicy {
	if r.Network == "unset" && len(r.Allow) == 0 && len(r.Deny) == 0 {
		return nil
	}
	p := &client.NetworkPolicy{Default: client.AllowByDefault, Allow: r.Allow, Deny: r.Deny}
	if r.Network == "none" {
		p.Default = client.DenyByDefault
	}
	return p
}

// networkRules are the flags that say what a sandbox may reach, and how.
type networkRules struct {
	networkLists
	DNS    []string `name:"dns" placeholder:"ADDRESS" sep:"none" help:"A DNS server that is asked for the names of a policy with names, in place of the host's; may be repeated."`
	Header []string `placeholder:"RULE" sep:"none" help:"A header that requests by TLS to a host get outside of the sandbox: 'HOST NAME: TEXT'. $${secrets.NAME} in the text stands for a secret. May be repeated."`
	Proxy  string   `placeholder:"URL" help:"A proxy that the allowed TCP connections go through, other traffic being denied: socks5://USER:PASSWORD@HOST:PORT, socks5s:// and https:// with TLS, http:// by CONNECT."`
}

// policy returns the policy of the flags; nil if there are none.
func (r networkRules) policy() (*client.NetworkPolicy, error) {
	p := r.lists()
	if p == nil && len(r.Header) == 0 && len(r.DNS) == 0 && r.Proxy == "" {
		return nil, nil
	}
	if p == nil {
		p = &client.NetworkPolicy{Default: client.AllowByDefault}
	}
	p.DNSServers = r.DNS
	for _, text := range r.Header {
		if err := addHeader(p, text); err != nil {
			return nil, err
		}
	}
	if r.Proxy == "" {
		return p, nil
	}
	proxy, err := wrenn.ParseEgressProxy(r.Proxy)
	if err != nil {
		return nil, err
	}
	p.Proxy = &client.EgressProxy{Protocol: string(proxy.Protocol), Address: proxy.Address(), Username: proxy.Username, Password: proxy.Password}
	if proxy.TLS != nil {
		p.Proxy.TLS = &client.EgressProxyTLS{}
	}
	return p, nil
}

// proxyText is a proxy for people.
func proxyText(p *client.EgressProxy) string {
	text := p.Protocol + " " + p.Address
	if p.TLS != nil {
		text += ", with TLS"
	}
	if p.Username != "" {
		text += ", as " + p.Username
	}
	return plain.Line(text)
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
networks are closed to every sandbox. The policies of the team (wrenn team network) and
of the template (wrenn template network) must allow a connection, too.

  wrenn sandbox network ID --network none                  nothing
  wrenn sandbox network ID --network none --allow 1.1.1.1  one address alone
  wrenn sandbox network ID --network none --allow pypi.org --allow '*.pythonhosted.org'
                                                           some hosts alone, by TLS and HTTP/1
  wrenn sandbox network ID --deny '*.example.com'          all but some hosts
  wrenn sandbox network ID --network internet              everything again
  wrenn sandbox network ID --header 'api.example.com Authorization: Bearer ${secrets.token}'
                                                           a secret that the sandbox does not see
  wrenn sandbox network ID --proxy socks5://me:"$PASSWORD"@proxy.example.com:1080
                                                           all TCP through a proxy`
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
	return s.print(now, func(w io.Writer) { printPolicy(w, now) })
}

// printPolicy prints a policy for people.
func printPolicy(w io.Writer, p *client.NetworkPolicy) {
	fmt.Fprintf(w, "default  %s\nallow    %s\ndeny     %s\n", p.Default, rulesText(p.Allow), rulesText(p.Deny))
	if len(p.DNSServers) > 0 {
		fmt.Fprintf(w, "dns      %s\n", rulesText(p.DNSServers))
	}
	if len(p.Headers) > 0 {
		fmt.Fprintf(w, "headers  %s\n", headersText(p.Headers))
	}
	if p.Proxy != nil {
		fmt.Fprintf(w, "proxy    %s\n", proxyText(p.Proxy))
	}
	for _, l := range p.Layers {
		fmt.Fprintf(w, "%-8s %s\n", plain.Line(l.Layer), networkLine(&client.NetworkPolicy{Default: l.Default, Allow: l.Allow, Deny: l.Deny}))
	}
}

type teamCommands struct {
	Network teamNetworkCommand `cmd:"" help:"Show or set what all sandboxes of the team may reach of the internet."`
}

type teamNetworkCommand struct {
	networkLists
}

// layerHelp is shown below the usage of commands for the policies of teams and templates.
const layerHelp = `Without flags it shows the policy. With any it replaces the whole policy. A connection
of a sandbox is allowed only if the policy of its team, that of its template and its own
allow it. Sandboxes that run or are paused follow a change within seconds; connections
that stay allowed continue.

`

// Help is shown below the usage.
func (*teamNetworkCommand) Help() string {
	return layerHelp + `  wrenn team network --network none --allow pypi.org --allow '*.pythonhosted.org'
  wrenn team network --deny '*.example.com'
  wrenn team network --network internet                    no policy`
}

// Run shows or sets the policy of the team.
func (c *teamNetworkCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return c.showOrSet(ctx, s, api.TeamNetwork, api.SetTeamNetwork)
}

type templateNetworkCommand struct {
	Name string `arg:"" complete:"template" help:"The template; the policy is for all its tags."`
	networkLists
}

// Help is shown below the usage.
func (*templateNetworkCommand) Help() string {
	return layerHelp + `  wrenn template network base --network none --allow pypi.org
  wrenn template network base --network internet           no policy`
}

// Run shows or sets the policy of the template.
func (c *templateNetworkCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return c.showOrSet(ctx, s,
		func(ctx context.Context) (*client.NetworkPolicy, error) { return api.TemplateNetwork(ctx, c.Name) },
		func(ctx context.Context, p client.NetworkPolicy) (*client.NetworkPolicy, error) {
			return api.SetTemplateNetwork(ctx, c.Name, p)
		})
}

// showOrSet sets the policy of the flags, or shows the one that is.
func (r networkLists) showOrSet(ctx context.Context, s *session, show func(context.Context) (*client.NetworkPolicy, error), set func(context.Context, client.NetworkPolicy) (*client.NetworkPolicy, error)) error {
	var now *client.NetworkPolicy
	var err error
	if wanted := r.lists(); wanted != nil {
		now, err = set(ctx, *wanted)
	} else {
		now, err = show(ctx)
	}
	if err != nil {
		return err
	}
	return s.print(now, func(w io.Writer) { printPolicy(w, now) })
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
	if p.Proxy != nil {
		text += ", through " + proxyText(p.Proxy)
	}
	return text
}
