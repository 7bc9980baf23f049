// Package run is what all mains have in common: signals, the error on stderr, the exit code.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"wrenn/internal/plain"
)

// Exit codes of programs that say nothing else.
const (
	codeFailed = 1
	codeUsage  = 2
)

// ErrUsage marks errors of the command line: exit code 2.
var ErrUsage = errors.New("usage")

// Coder is an error that names the program's exit code. One without a message
// prints nothing.
type Coder interface {
	error
	ExitCode() int
}

// Start is a program. It returns when ctx ends, which SIGINT and SIGTERM do;
// ending because of that is no error.
type Start func(ctx context.Context, args []string) error

// Main runs start with the program's arguments and ends the process. A second
// signal ends it at once.
func Main(start Start) {
	os.Exit(Run(context.Background(), start, os.Args[1:], os.Stderr)) //nolint:forbidigo // the one place
}

// Run is Main without the end of the process: it returns the exit code.
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
		signal.Stop(signals) // before start hears of it: from then on a signal does what it does by default
		cancel()
	}()
	err := start(ctx, args)
	if err == nil {
		return 0
	}
	if message := err.Error(); message != "" {
		_, _ = fmt.Fprintln(stderr, plain.Text(message)) // where else could it go
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
