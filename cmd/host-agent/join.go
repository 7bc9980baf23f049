package main

import (
	"context"
	"fmt"

	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/run"
)

type joinCommand struct {
	ControlPlane string `arg:"" name:"url" help:"The control plane's API: https://…, or http:// on this machine."`
	Token        string `arg:"" optional:"" env:"WRENN_JOIN_TOKEN" help:"The token; it works once."`
	TokenFile    string `type:"path" placeholder:"FILE" help:"A file with the token, as that of a service account of Kubernetes, which works until it expires."`

	Listen string `placeholder:"ADDRESS" help:"Where the agent listens, by TLS; default :49980."`
	URL    string `name:"url-of-agent" placeholder:"URL" help:"Where control planes reach the agent; default: its port at the address by which this machine reaches the control plane, also after that changes."`
	Name   string `help:"A name for people; default: the machine's."`
	CA     string `name:"ca" type:"path" placeholder:"FILE" help:"The authority of the control plane's certificate; default: those that this machine trusts."`
}

// Run joins, and says how to go on. It does not start the agent.
func (c *joinCommand) Run(ctx context.Context, line *commandLine, std streams) error {
	if (c.Token == "") == (c.TokenFile == "") {
		return fmt.Errorf("%w: give the token, or --token-file", run.ErrUsage)
	}
	if c.TokenFile != "" {
		token, err := hostjoin.ReadToken(c.TokenFile)
		if err != nil {
			return err
		}
		c.Token = token
	}
	m, err := member.Join{
		StateDir: line.State, ControlPlane: c.ControlPlane, Token: c.Token, Name: c.Name, Listen: c.Listen, URL: c.URL, CA: c.CA,
	}.Do(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "this machine is host %s of the fleet; start its agent, or restart it: host-agent --state %s serve\n", m.Host(), line.State)
	return err
}
