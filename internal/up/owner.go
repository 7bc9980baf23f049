package up

import (
	"context"

	"wrenn"
	"wrenn/client"
	"wrenn/internal/service"
)

// living are the sandboxes that did not end.
var living = client.ListSandboxes{States: []client.State{
	client.Pending, client.Starting, client.Running, client.Pausing, client.Paused, client.Resuming, client.Stopping,
}}

// owner is a client with a key of its own, for a moment.
type owner struct {
	*client.Client

	running *Running
	key     string // its id
}

// keyed makes a key and a client that has it.
func (m *machine) keyed(ctx context.Context) (*owner, error) {
	o := &owner{running: m.running()}
	return o, o.running.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		key, secret, err := svc.CreateKey(ctx, service.Caller{Team: team}, "wrenn up, stopping")
		if err != nil {
			return err
		}
		o.key = key.ID
		o.Client, err = client.New(client.Config{URL: o.running.URL, Key: secret})
		return err
	})
}

// close revokes the key.
func (o *owner) close(ctx context.Context) {
	_ = o.RevokeKey(ctx, o.key) // nobody knows its secret any more
}
