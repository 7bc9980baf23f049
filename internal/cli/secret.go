package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"wrenn.dev"
)

type secretCommands struct {
	Set    secretSetCommand    `cmd:"" help:"Store a secret, or give it another value."`
	List   secretListCommand   `cmd:"" aliases:"ls" help:"List secrets, without their values."`
	Delete secretDeleteCommand `cmd:"" aliases:"rm" help:"Delete secrets with their values."`
}

type secretSetCommand struct {
	Name     string            `arg:"" help:"Its name; it is stored in lower case."`
	File     string            `short:"f" placeholder:"FILE" help:"Read the value from a file; default: the standard input."`
	Metadata map[string]string `short:"m" placeholder:"KEY=VALUE" help:"Labels; may be repeated. Without any the labels of an earlier value stay."`
}

// Help is shown below the usage.
func (*secretSetCommand) Help() string {
	return `The value is not an argument: those are seen by other users of the machine, and
stay in the shell's history. One line feed at its end is left out.

  wrenn secret set token < token.txt
  printf %s "$TOKEN" | wrenn secret set token`
}

// Run prints the name and the version, never the value.
func (c *secretSetCommand) Run(ctx context.Context, s *session) error {
	value, err := c.read(s)
	if err != nil {
		return err
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	secret, err := api.SetSecret(ctx, c.Name, value, c.Metadata)
	if err != nil {
		return err
	}
	return s.print(secret, func(w io.Writer) { fmt.Fprintf(w, "%s, version %d\n", secret.Name, secret.Version) })
}

func (c *secretSetCommand) read(s *session) (string, error) {
	from := s.In
	if c.File != "" {
		f, err := os.Open(c.File)
		if err != nil {
			return "", err
		}
		defer f.Close()
		from = f
	}
	text, err := io.ReadAll(io.LimitReader(from, wrenn.MaxSecretBytes+2))
	if err != nil {
		return "", fmt.Errorf("read the value: %w", err)
	}
	value := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if value == "" || len(value) > wrenn.MaxSecretBytes {
		return "", fmt.Errorf("the value of a secret has 1 to %d bytes", wrenn.MaxSecretBytes)
	}
	return value, nil
}

type secretListCommand struct{}

// Run prints a table, or an array of JSON.
func (*secretListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	secrets, err := api.Secrets(ctx)
	if err != nil {
		return err
	}
	return s.print(secrets, func(w io.Writer) {
		rows := [][]string{{"NAME", "VERSION", "CHANGED", "ID"}}
		for _, secret := range secrets {
			rows = append(rows, []string{secret.Name, strconv.Itoa(secret.Version), age(secret.UpdatedAt), secret.ID})
		}
		table(w, rows)
	})
}

type secretDeleteCommand struct {
	Names []string `arg:"" name:"name" complete:"secret" help:"The secrets, by their names or ids."`
}

// Run deletes them one by one.
func (c *secretDeleteCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "deleting", c.Names, api.DeleteSecret)
}
