package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"wrenn.dev/client"
)

type webhookCommands struct {
	Add        webhookAddCommand        `cmd:"" help:"Have events of sandboxes sent to a URL; prints the secret of their signatures."`
	List       webhookListCommand       `cmd:"" aliases:"ls" help:"List webhooks."`
	Enable     webhookEnableCommand     `cmd:"" help:"Enable webhooks that were disabled."`
	Disable    webhookDisableCommand    `cmd:"" help:"Disable webhooks; what waits for them is given up."`
	Remove     webhookRemoveCommand     `cmd:"" aliases:"rm" help:"Delete webhooks."`
	Test       webhookTestCommand       `cmd:"" help:"Send a test event once."`
	Deliveries webhookDeliveriesCommand `cmd:"" help:"List the last deliveries of a webhook."`
}

type webhookAddCommand struct {
	URL         string   `arg:"" help:"https://…"`
	Event       []string `short:"e" placeholder:"KIND" help:"A kind of events, such as sandbox.running or sandbox.stopped; may be repeated. Default: all."`
	Description string   `placeholder:"TEXT" help:"For people."`
}

// Run prints the id and the secret.
func (c *webhookAddCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	made, secret, err := api.CreateWebhook(ctx, client.CreateWebhook{URL: c.URL, Events: c.Event, Description: c.Description})
	if err != nil {
		return err
	}
	out := struct {
		client.Webhook

		Secret string `json:"secret"`
	}{made, secret}
	return s.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n%s\n", made.ID, secret)
		if terminal(s.Out) != nil {
			fmt.Fprintln(s.Err, s.paint(s.Err, faint, "The secret, on the second line, is not shown again."))
		}
	})
}

type webhookListCommand struct{}

// Run prints a table, or an array of JSON.
func (*webhookListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	all, err := api.Webhooks(ctx)
	if err != nil {
		return err
	}
	return s.print(all, func(w io.Writer) {
		rows := [][]string{{"ID", "STATE", "EVENTS", "URL", "NOTE"}}
		for _, one := range all {
			state := "works"
			switch {
			case !one.Enabled:
				state = "disabled"
			case !one.FailingSince.IsZero():
				state = "fails for " + age(one.FailingSince)
			}
			rows = append(rows, []string{one.ID, state, cmp.Or(strings.Join(one.Events, ","), "all"), one.URL, cmp.Or(one.DisabledReason, one.Description)})
		}
		table(w, rows)
	})
}

type webhookEnableCommand struct {
	IDs []string `arg:"" name:"id" help:"The webhooks, by their ids."`
}

// Run enables them one by one.
func (c *webhookEnableCommand) Run(ctx context.Context, s *session) error {
	return setWebhooks(ctx, s, "enabling", c.IDs, true)
}

type webhookDisableCommand struct {
	IDs []string `arg:"" name:"id" help:"The webhooks, by their ids."`
}

// Run disables them one by one.
func (c *webhookDisableCommand) Run(ctx context.Context, s *session) error {
	return setWebhooks(ctx, s, "disabling", c.IDs, false)
}

func setWebhooks(ctx context.Context, s *session, doing string, ids []string, enabled bool) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, doing, ids, func(ctx context.Context, id string) error {
		_, err := api.UpdateWebhook(ctx, id, client.UpdateWebhook{Enabled: &enabled})
		return err
	})
}

type webhookRemoveCommand struct {
	IDs []string `arg:"" name:"id" help:"The webhooks, by their ids."`
}

// Run deletes them one by one.
func (c *webhookRemoveCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "deleting", c.IDs, api.DeleteWebhook)
}

type webhookTestCommand struct {
	ID string `arg:"" help:"The webhook's id."`
}

// Run fails if the receiver did not accept the event.
func (c *webhookTestCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	sent, err := api.TestWebhook(ctx, c.ID)
	if err != nil {
		return err
	}
	if err := s.print(sent, func(w io.Writer) { fmt.Fprintf(w, "%s %s\n", sent.State, answerOf(*sent)) }); err != nil {
		return err
	}
	if sent.State != "delivered" {
		return fmt.Errorf("the event was not delivered: %s", sent.Error)
	}
	return nil
}

type webhookDeliveriesCommand struct {
	ID    string `arg:"" help:"The webhook's id."`
	Limit int    `default:"50" help:"The most that are listed, up to 200."`
}

// Run prints a table, or an array of JSON.
func (c *webhookDeliveriesCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	all, err := api.WebhookDeliveries(ctx, c.ID, c.Limit)
	if err != nil {
		return err
	}
	return s.print(all, func(w io.Writer) {
		rows := [][]string{{"ID", "STATE", "EVENT", "SANDBOX", "ATTEMPTS", "ANSWER", "AGE", "ERROR"}}
		for _, d := range all {
			rows = append(rows, []string{d.ID, d.State, d.Event, cmp.Or(d.SandboxID, "-"), strconv.Itoa(d.Attempts), answerOf(d), age(d.CreatedAt), d.Error})
		}
		table(w, rows)
	})
}

// answerOf is the status of the last answer.
func answerOf(d client.WebhookDelivery) string {
	if d.Status == 0 {
		return "-"
	}
	return strconv.Itoa(d.Status)
}
