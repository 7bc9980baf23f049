// Command host-agent runs sandboxes on this machine for a control plane (serve),
// and prepares what they boot (image).
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/alecthomas/kong"

	"wrenn.dev/internal/run"
)

// init keeps every other goroutine off the main thread. A goroutine that enters
// a network namespace ends its thread when it cannot return to the old one; the
// main thread cannot be ended and would stay in the other namespace.
func init() { runtime.LockOSThread() }

func main() { run.Main(start) }

// commandLine is the whole command line.
type commandLine struct {
	State string `default:"/var/lib/wrenn" type:"path" help:"Directory for images, disks, snapshots and journals."`

	Join  joinCommand   `cmd:"" help:"Make this machine a host of a fleet, with a token that wrenn host token prints."`
	Serve serveCommand  `cmd:"" help:"Run sandboxes for a control plane."`
	InPod inPodCommand  `cmd:"" help:"In a pod of Kubernetes: join by the service account, then serve on the pod's node."`
	Pause pauseCommand  `cmd:"" help:"Pause all sandboxes while no agent serves, such as before Wrenn is removed."`
	Image imageCommands `cmd:"" help:"Make guest images."`
}

// streams are a command's standard streams.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// start parses args, the command line without the program's name, and runs the
// command. The error is one that run.Main prints.
func start(ctx context.Context, args []string) error {
	return command(ctx, args, streams{in: os.Stdin, out: os.Stdout, err: os.Stderr})
}

func command(ctx context.Context, args []string, std streams) error {
	var line commandLine
	helped := false
	parser, err := kong.New(&line,
		kong.Name("host-agent"), kong.Description("Runs sandboxes on this machine."), kong.UsageOnError(),
		kong.Writers(std.out, std.err), kong.Exit(func(int) { helped = true }),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(std, &line))
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s", run.ErrUsage, err.Error()) // not wrapped: kong has its own exit code
	}
	return parsed.Run()
}
