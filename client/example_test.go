package client_test

import (
	"context"
	"fmt"
	"os"

	"wrenn.dev/client"
)

// hello creates a sandbox, runs a command in it and destroys it. README.md shows its
// first lines.
func hello(ctx context.Context) error {
	c, err := client.FromEnvironment() // the server and key of the commands above
	if err != nil {
		return err
	}
	sandbox, err := c.Create(ctx, client.CreateSandbox{})
	if err != nil {
		return err
	}
	defer sandbox.Close()
	result, err := sandbox.Shell(ctx, "uname -a")
	if err != nil {
		return err
	}
	fmt.Printf("%s", result.Stdout)
	return nil
}

func Example() {
	if err := hello(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// A sandbox is prepared once; each copy of it tries one way, and has the files and the
// running programs of the original.
func ExampleHandle_Fork() {
	try := func(ctx context.Context, c *client.Client, ways []string) error {
		base, err := c.Create(ctx, client.CreateSandbox{})
		if err != nil {
			return err
		}
		defer base.Close()
		if err := base.Files().Write(ctx, "data", []byte("slow to make")); err != nil {
			return err
		}
		copies, err := base.Fork(ctx, client.Fork{Count: len(ways)})
		for i, each := range copies {
			defer each.Close()
			result, failed := each.Shell(ctx, ways[i])
			if failed != nil {
				return failed
			}
			fmt.Printf("%s: %s", ways[i], result.Stdout)
		}
		return err // of the copies that could not be made
	}
	c, err := client.FromEnvironment()
	if err == nil {
		err = try(context.Background(), c, []string{"gzip -1c data | wc -c", "gzip -9c data | wc -c"})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
