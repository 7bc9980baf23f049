package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

type networkLearnCommand struct {
	ID string `arg:"" complete:"sandbox" help:"The sandbox, running or paused."`
}

// Help is shown below the usage.
func (*networkLearnCommand) Help() string {
	return `It reads the sandbox's egress log, and proposes the policy that allows what the
sandbox reached, and what it was denied, and nothing else. It changes nothing. Read the
proposal before you use it: the sandbox chose what is in the log.

Names are known of sandboxes whose policy denies by default; give one --network none, run
what it is for, and look at what it asked for. Of others the addresses are known.`
}

// Run proposes a policy, as the command that sets it.
func (c *networkLearnCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	log, err := api.NetworkLog(ctx, c.ID, client.NetworkLogOptions{})
	if err != nil {
		return err
	}
	p := proposePolicy(log.Events)
	if log.Dropped > 0 {
		fmt.Fprintf(s.Err, "the log has lost %d earlier events: the proposal may lack what they were about\n", log.Dropped)
	}
	return s.print(p, func(w io.Writer) {
		fmt.Fprintf(w, "wrenn sandbox network %s --network none", c.ID)
		for _, rule := range p.Allow {
			fmt.Fprintf(w, " --allow %s", plain.Line(rule))
		}
		fmt.Fprintln(w)
	})
}

// proposePolicy returns the policy that allows what the events are about: hosts by
// name, and addresses of what has no name. What no policy can allow is left out.
func proposePolicy(events []client.NetworkEvent) client.NetworkPolicy {
	var names, addresses []string
	for i := range events {
		e := &events[i]
		switch {
		case e.Protocol == "dns": // a name alone is no connection
		case e.Name != "":
			if rule, ok := nameRule(e); ok {
				names = append(names, rule)
			}
		default:
			if addr, err := netip.ParseAddr(e.Address); err == nil && addr.Is4() && addr.IsGlobalUnicast() && !addr.IsPrivate() {
				addresses = append(addresses, e.Address)
			}
		}
	}
	slices.Sort(names)
	slices.Sort(addresses)
	return client.NetworkPolicy{Default: client.DenyByDefault, Allow: slices.Concat(slices.Compact(names), slices.Compact(addresses))}
}

// nameRule returns the rule for the host of an event. The sandbox chose its name.
func nameRule(e *client.NetworkEvent) (rule string, ok bool) {
	text := e.Name
	if e.Port != 0 {
		text += ":" + strconv.Itoa(e.Port)
	}
	n, err := wrenn.ParseNetworkName(text)
	return n.String(), err == nil && wrenn.CheckEgressHost(e.Name) == nil // which is no pattern
}
