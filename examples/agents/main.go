// Command agents runs each task in a sandbox that no other task shares: what one agent
// installs, breaks or leaks does not reach the others.
//
//	go run ./examples/agents 'echo one > /tmp/x; cat /tmp/x' 'ls /tmp/x'
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"wrenn.dev/client"
)

const (
	parallel = 2                // sandboxes at a time
	taskTime = 2 * time.Minute  // of one task
	idleTime = 10 * time.Minute // after which a sandbox ends if this program could not destroy it
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	api, err := client.FromEnvironment()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	var tasks sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for n, task := range os.Args[1:] {
		tasks.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			output, err := run(ctx, api, task)
			if err != nil {
				output = "failed: " + err.Error() + "\n"
			}
			fmt.Printf("task %d: %s", n+1, output)
		})
	}
	tasks.Wait()
}

// run runs a task in a sandbox for it alone, and returns what it printed.
func run(ctx context.Context, api *client.Client, task string) (output string, err error) {
	sandbox, err := api.Create(ctx, client.CreateSandbox{Timeout: idleTime, Metadata: map[string]string{"example": "agents"}})
	if err != nil {
		return "", err
	}
	defer func() {
		if failed := sandbox.Close(); err == nil { // also after Ctrl-C
			err = failed
		}
	}()
	// An agent is a loop: ask a model, run what it wants, show it the result. Here the model's answer is the task.
	result, err := sandbox.Run(ctx, client.Command{Cmd: "/bin/sh", Args: []string{"-c", task}, Timeout: taskTime})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("exit code %d\n%s%s", result.ExitCode, result.Stdout, result.Stderr), nil
}
