package up

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/durable"
)

// living selects the sandboxes that did not end.
var living = client.ListSandboxes{States: []client.State{
	client.Pending, client.Starting, client.Running, client.Pausing, client.Paused, client.Resuming, client.Stopping,
}}

// lentKeyFile records, in the state directory, the key that a command has. While it exists, the
// sandboxes that were created with the key are to be destroyed, also after a crash.
const lentKeyFile = "lent-key"

// Loan is an API key that a command has while it runs.
type Loan struct {
	Secret string

	r  *Running
	id string
}

// Lend makes a key for a command. The caller must return it; after a crash the next Run does.
func (r *Running) Lend(ctx context.Context, name string) (*Loan, error) {
	loan := &Loan{r: r}
	err := r.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		key, secret, err := svc.CreateKey(ctx, service.Caller{Team: team}, service.NewKey{Name: name})
		loan.Secret, loan.id = secret, key.ID
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(r.lentKey, []byte(loan.id+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("record the command's key: %w", err)
	}
	return loan, nil
}

// Return destroys the sandboxes that were created with the key, and no others, and revokes it.
func (l *Loan) Return(ctx context.Context) error {
	// Revoked first, and by the API, which forgets it at once: a process that still has the key
	// creates no more sandboxes.
	err := l.r.asOwner(ctx, func(ctx context.Context, api *client.Client) error { return api.RevokeKey(ctx, l.id) })
	if err != nil && client.CodeOf(err) != client.NotFound {
		return fmt.Errorf("revoke the command's key: %w", err)
	}
	var created []wrenn.SandboxID
	err = l.r.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		created, err = svc.SandboxesCreatedBy(ctx, service.Caller{Team: team, Key: l.id})
		return err
	})
	if err == nil {
		err = l.r.destroy(ctx, created)
	}
	if err != nil {
		return fmt.Errorf("destroy the command's sandboxes: %w", err)
	}
	if err := os.Remove(l.r.lentKey); err != nil {
		return err
	}
	return durable.Sync(filepath.Dir(l.r.lentKey))
}

// returnLoan returns the key of a command whose Run was killed, if there is one.
func (m *machine) returnLoan(ctx context.Context) error {
	r := m.running()
	id, err := os.ReadFile(r.lentKey)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		m.cfg.Say("destroying the sandboxes of an earlier command")
		loan := &Loan{r: r, id: strings.TrimSpace(string(id))}
		err = loan.Return(ctx)
	}
	if err != nil && ctx.Err() == nil {
		// Not a reason to fail: the next start tries again.
		m.cfg.Say("cannot destroy the sandboxes of an earlier command; will retry at the next start; the reason is in the control plane's log")
		m.log.LogAttrs(ctx, slog.LevelWarn, "cannot destroy the sandboxes of an earlier command", slog.Any("err", err))
		return nil
	}
	return err
}

// destroy destroys the sandboxes through the API, so that the database records it.
func (r *Running) destroy(ctx context.Context, ids []wrenn.SandboxID) error {
	if len(ids) == 0 {
		return nil
	}
	return r.asOwner(ctx, func(ctx context.Context, api *client.Client) error {
		var all errgroup.Group
		all.SetLimit(atOnce)
		for _, id := range ids {
			all.Go(func() error { return api.DeleteSandbox(ctx, string(id)) })
		}
		return all.Wait()
	})
}

// destroyAll destroys all sandboxes of the team.
func (r *Running) destroyAll(ctx context.Context) error {
	var ids []wrenn.SandboxID
	err := r.asOwner(ctx, func(ctx context.Context, api *client.Client) error {
		for sb, err := range api.Sandboxes(ctx, living) {
			if err != nil {
				return err
			}
			ids = append(ids, wrenn.SandboxID(sb.ID))
		}
		return nil
	})
	return errors.Join(err, r.destroy(ctx, ids))
}

// asOwner calls do with a client of the team. It makes a key for that and revokes it afterwards.
func (r *Running) asOwner(ctx context.Context, do func(context.Context, *client.Client) error) error {
	return r.withService(ctx, func(svc *service.Service, team wrenn.TeamID) error {
		key, secret, err := svc.CreateKey(ctx, service.Caller{Team: team}, service.NewKey{Name: "wrenn up"})
		if err != nil {
			return err
		}
		defer func() { _ = svc.RevokeKey(context.WithoutCancel(ctx), service.Caller{Team: team}, key.ID) }() // its secret is not kept anywhere
		api, err := client.New(client.Config{URL: r.URL, Key: secret})
		if err != nil {
			return err
		}
		return do(ctx, api)
	})
}
