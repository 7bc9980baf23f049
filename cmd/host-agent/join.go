package main

import (
	"context"
	"fmt"

	"wrenn/internal/host/member"
)

type joinCommand struct {
	ControlPlane string `arg:"" name:"url" help:"The control plane's API: https://…, or http:// on this machine."`
	Token        string `arg:"" env:"WRENN_JOIN_TOKEN" help:"The token; it works once."`

	Listen string `placeholder:"ADDRESS" help:"Where the agent listens, by TLS; default :49980."`
	URL    string `name:"url-of-agent" placeholder:"URL" help:"Where control planes reach the agent; default: its port at the address by which this machine reaches the control plane, also after that changes."`
	Name   string `help:"A name for people; default: the machine's."`
	CA     string `name:"ca" type:"path" placeholder:"FILE" help:"The authority of the control plane's certificate; default: those that this machine trusts."`
}

// Run joins, and says how to go on. It does not start the agent.
func (c *joinCommand) Run(ctx context.Context, line *commandLine, std streams) error {
	m, err := member.Join{
		StateDir: line.State, ControlPlane: c.ControlPlane, Token: c.Token, Name: c.Name, Listen: c.Listen, URL: c.URL, CA: c.CA,
	}.Do(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(std.out, "this machine is host %s of the fleet; start its agent, or restart it: host-agent --state %s serve\n", m.Host(), line.State)
	return err
}
