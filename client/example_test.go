package client_test

import (
	"context"
	"fmt"
	"os"

	"wrenn.dev/client"
)

// hello creates a sandbox, runs a command in it and deletes it. README.md shows
// its first lines.
func hello(ctx context.Context) error {
	c, err := client.FromEnvironment() // the server and key of the commands above
	if err != nil {
		return err
	}
	sb, err := c.CreateSandbox(ctx, client.CreateSandbox{})
	if err != nil {
		return err
	}
	result, err := c.Exec(ctx, sb.ID, client.Command{Cmd: "uname", Args: []string{"-a"}})
	if err != nil {
		return err
	}
	fmt.Printf("%s", result.Stdout)
	return c.DeleteSandbox(ctx, sb.ID)
}

func Example() {
	if err := hello(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
