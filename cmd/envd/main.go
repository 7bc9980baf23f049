// Command envd is the agent in a guest: it runs programs and serves files on one
// port.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/identity"
	"wrenn.dev/internal/run"
)

// runDir is where programs in the guest register for restores: docs/fork-safety.md.
const runDir = "/run/wrenn"

func main() { run.Main(start) }

// options are the command line.
type options struct {
	listen  string
	outside bool
	cgroups string
	version bool
}

func parse(args []string) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("envd", flag.ContinueOnError)
	flags.StringVar(&o.listen, "listen", ":49983", "address to serve on")
	flags.BoolVar(&o.outside, "outside-guest", false, "leave the machine's clock, random pool, names and cgroups alone; the default unless the init of a guest starts envd")
	flags.StringVar(&o.cgroups, "cgroups", "/sys/fs/cgroup", "where cgroup2 is mounted; each program gets a cgroup below it")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%w: envd takes no arguments, only flags: %q", run.ErrUsage, flags.Args())
	}
	return o, nil
}

func start(ctx context.Context, args []string) error {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", run.ErrUsage, err)
	case o.version:
		fmt.Println(guest.Version)
		return nil
	}
	// Programs must not inherit the files that the agent inherited. Linux before 5.11 cannot do this; nothing depends on it.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	// Programs inherit ignored signals, not caught ones.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	run.SurviveBrokenPipes()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	cfg := guest.Config{
		Machine: guest.Kernel{Linux: identity.Linux{Private: filepath.Join(runDir, "private")}},
		Log:     log, Cgroups: o.cgroups, Protect: os.Geteuid() == 0,
		RunDir: runDir, Root: "/",
	}
	if !o.outside && !inGuest() {
		log.Info("not started by the init of a guest: the machine is left alone")
		o.outside = true
	}
	if o.outside {
		scratch, err := os.MkdirTemp("", "envd-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(scratch) }() // a few small files may stay
		cfg.Machine, cfg.Cgroups, cfg.Protect = bystander{log: log}, "", false
		cfg.RunDir, cfg.Root = scratch, ""
	} else if err := cfg.Accounts.MakeRuntimeDirs(account.RuntimeRoot); err != nil {
		log.Warn("users have no XDG_RUNTIME_DIR", slog.Any("err", err))
	}
	if os.Geteuid() != 0 {
		own, err := user.Current()
		if err != nil {
			return fmt.Errorf("look up the agent's own user: %w", err)
		}
		cfg.DefaultUser = own.Username
	}
	agent := guest.New(cfg)
	log.Info("envd is ready", slog.String("version", guest.Version), slog.String("address", l.Addr().String()))
	return agent.Serve(ctx, l)
}

// bystander is the machine of an agent outside a guest: it only logs the calls.
type bystander struct{ log *slog.Logger }

func (bystander) Now() time.Time { return time.Now().Round(0) }

func (b bystander) SetTime(t time.Time) error {
	b.log.Info("would set the clock", slog.Time("to", t))
	return nil
}

func (b bystander) AddEntropy(seed []byte) error {
	b.log.Info("would add entropy", slog.Int("bytes", len(seed)))
	return nil
}

func (b bystander) SetHostname(name string) error {
	b.log.Info("would set the host name", slog.String("to", name))
	return nil
}

func (b bystander) GrowRoot(_ context.Context, size int64) error {
	b.log.Info("would grow the root file system", slog.Int64("to", size))
	return nil
}

func (bystander) TrustInJava(context.Context) error { return nil }

func (b bystander) Trust(string) (map[string]string, error) {
	b.log.Info("would trust an authority")
	return nil, nil
}

func (b bystander) Show(file, path string) error {
	b.log.Info("would show a file in another's place", slog.String("file", file), slog.String("path", path))
	return nil
}

func (b bystander) Signal(pid, signal int) error {
	b.log.Info("would signal", slog.Int("pid", pid), slog.Int("signal", signal))
	return nil
}

func (bystander) Sync() error { return nil }

func (bystander) StartDaemon(context.Context) error { return nil }

func (b bystander) MountNFS(target, path string) error {
	b.log.Info("would mount a volume", slog.String("target", target), slog.String("path", path))
	return nil
}
