// Package run runs a program's main function: it handles signals, prints the
// error to stderr and sets the exit code.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"wrenn.dev/internal/plain"
)

// Exit codes of errors that are no Coder.
const (
	codeFailed = 1
	codeUsage  = 2
)

// ErrUsage marks errors of the command line: exit code 2.
var ErrUsage = errors.New("usage")

// Coder is an error with an exit code. If its message is empty nothing is printed.
type Coder interface {
	error
	ExitCode() int
}

// Start is a program. It must return when ctx ends, which SIGINT and SIGTERM
// cause; it returns nil then.
type Start func(ctx context.Context, args []string) error

// Main runs start with the program's arguments and ends the process. A second
// signal ends it at once.
func Main(start Start) {
	os.Exit(Run(context.Background(), start, os.Args[1:], os.Stderr)) //nolint:forbidigo // the one place
}

// Run is like Main, but returns the exit code instead of ending the process.
func Run(ctx context.Context, start Start, args []string, stderr io.Writer) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		signal.Stop(signals) // before cancel: the next signal has its default effect
		cancel()
	}()
	err := start(ctx, args)
	if err == nil {
		return 0
	}
	if message := err.Error(); message != "" {
		_, _ = fmt.Fprintln(stderr, plain.Text(message)) // there is no other place to report it
	}
	return code(err)
}

func code(err error) int {
	if coder, ok := errors.AsType[Coder](err); ok {
		return coder.ExitCode()
	}
	if errors.Is(err, ErrUsage) {
		return codeUsage
	}
	return codeFailed
}
