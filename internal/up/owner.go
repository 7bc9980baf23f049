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

// LendKey makes a key that works until giveBack is called.
func (r *Running) LendKey(ctx context.Context, name string) (secret string, giveBack func(context.Context), err error) {
	err = r.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		key, made, err := svc.CreateKey(ctx, service.Caller{Team: team}, name)
		if err != nil {
			return err
		}
		api, err := client.New(client.Config{URL: r.URL, Key: made})
		if err != nil {
			return err
		}
		secret = made
		giveBack = func(ctx context.Context) { _ = api.RevokeKey(ctx, key.ID) } // nobody knows its secret any more
		return nil
	})
	return secret, giveBack, err
}
