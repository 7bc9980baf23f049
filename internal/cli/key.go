package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"wrenn.dev/client"
)

type keyCommands struct {
	Create keyCreateCommand `cmd:"" help:"Create an API key and print its secret, which is shown only once."`
	List   keyListCommand   `cmd:"" aliases:"ls" help:"List API keys."`
	Revoke keyRevokeCommand `cmd:"" help:"Revoke API keys."`
}

type keyCreateCommand struct {
	Name    string   `arg:"" help:"A name that says what the key is for."`
	Scope   []string `help:"What it may be used for: read (see what there is), sandboxes, templates, admin (everything of the team, also keys and secrets; the default), operator (hosts). May be repeated." xor:"what" placeholder:"SCOPE"`
	Role    string   `help:"Instead of scopes: viewer (read), developer (sandboxes and templates) or admin." enum:"viewer,developer,admin," default:"" xor:"what" placeholder:"ROLE"`
	Expires span     `help:"After how long it stops working, such as 720h; default never." placeholder:"DURATION"`
}

// Run prints the secret alone, for scripts.
func (c *keyCreateCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	want := client.CreateKey{Name: c.Name, Scopes: c.Scope, Role: c.Role}
	if c.Expires.Duration != 0 {
		want.ExpiresAt = time.Now().Add(c.Expires.Duration)
	}
	key, secret, err := api.CreateKey(ctx, want)
	if err != nil {
		return err
	}
	out := struct {
		client.Key

		Secret string `json:"key"`
	}{key, secret}
	return s.print(out, func(w io.Writer) {
		fmt.Fprintln(w, secret)
		if terminal(s.Out) != nil {
			fmt.Fprintln(s.Err, s.paint(s.Err, faint, "It is not shown again."))
		}
	})
}

type keyListCommand struct{}

// Run prints a table, or an array of JSON.
func (*keyListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	keys, err := api.Keys(ctx)
	if err != nil {
		return err
	}
	return s.print(keys, func(w io.Writer) {
		rows := [][]string{{"ID", "NAME", "KEY", "ROLE", "SCOPES", "AGE", "LAST USED", "EXPIRES"}}
		for _, k := range keys {
			used := "never"
			if !k.LastUsedAt.IsZero() {
				used = age(k.LastUsedAt) + " ago"
			}
			expires := "never"
			if !k.ExpiresAt.IsZero() {
				expires = k.ExpiresAt.Local().Format(time.DateTime)
			}
			rows = append(rows, []string{k.ID, k.Name, k.Hint + "...", cmp.Or(k.Role, "-"), strings.Join(k.Scopes, ","), age(k.CreatedAt), used, expires})
		}
		table(w, rows)
	})
}

type keyRevokeCommand struct {
	IDs []string `arg:"" name:"id" complete:"key" help:"The ids of the keys, as list prints them."`
}

// Run revokes them one by one.
func (c *keyRevokeCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "revoking", c.IDs, api.RevokeKey)
}
