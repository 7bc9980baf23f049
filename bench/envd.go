package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"wrenn.dev"

	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/rollback"
)

const (
	starts   = 200
	outBytes = 512 << 20
)

// envd measures the agent as a process of this machine, so that emulation does not
// hide its own cost.
func envd(ctx context.Context, b *bench) (_ []row, err error) {
	e, err := startEnvd(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.undo.Run(ctx)) }()
	rows := []row{{what: "envd idle, resident", ours: fmt.Sprintf("%.1f MiB", e.idleMiB)}}
	for _, m := range []struct {
		what, limit string
		show        func(float64) string
		amount      float64
		ours, bare  func(context.Context) error
	}{
		{"process starts; bare: os/exec", "", func(x float64) string { return fmt.Sprintf("%.0f/s", x) }, starts, e.startMany, bareStartMany},
		{"stdout of a process; bare: os/exec and a pipe", "", mibs, outBytes >> 20, e.stdout, bareStdout},
		{"upload; bare: a file copy", "", mibs, outBytes >> 20, e.upload, e.bareCopy},
		{"download; bare: a file copy", "", mibs, outBytes >> 20, e.download, e.bareCopy},
	} {
		rate := func(f func(context.Context) error) func(context.Context) (sample, error) {
			return func(ctx context.Context) (sample, error) {
				took, err := timed(func() error { return f(ctx) })
				return sample{m.amount / took}, err
			}
		}
		figures, err := pairs(ctx, b.rounds, rate(m.ours), rate(m.bare))
		if err != nil {
			return rows, fmt.Errorf("%s: %w", m.what, err)
		}
		f := figures[0]
		rows = append(rows, row{m.what, m.show(f.ours), m.show(f.bare), f.ratio, m.limit})
	}
	return rows, nil
}

// agent is a running envd and a file to move.
type agent struct {
	client  *envdclient.Client
	idleMiB float64
	source  string // a file of outBytes
	target  string
	undo    rollback.Stack
}

func startEnvd(ctx context.Context, dir string) (_ *agent, err error) {
	e := &agent{source: filepath.Join(dir, "source"), target: filepath.Join(dir, "target")}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.undo.Run(ctx))
		}
	}()
	if err := os.WriteFile(e.source, bytes.Repeat([]byte("wrenn\n--"), outBytes/8), 0o600); err != nil {
		return nil, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "bin/envd", "-outside-guest", "-listen", address)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	e.undo.Add(func(context.Context) error { return errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())) })
	var dialer net.Dialer
	e.client = envdclient.New(envdclient.Config{Dial: dialer.DialContext, Address: address})
	e.undo.AddFunc(e.client.Close)
	if err := e.client.WaitReady(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }); err != nil {
		return nil, err
	}
	e.idleMiB, err = statusMiB(cmd.Process.Pid, "VmRSS")
	return e, err
}

// freeAddress returns an unused address of this machine.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// ignoreExit is for a process that was killed on purpose.
func ignoreExit(err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil
	}
	return err
}

func (e *agent) startMany(ctx context.Context) error {
	for range starts {
		if _, err := e.client.Exec(ctx, wrenn.ExecCommand{Cmd: "/bin/true"}); err != nil {
			return err
		}
	}
	return nil
}

func bareStartMany(ctx context.Context) error {
	for range starts {
		if err := exec.CommandContext(ctx, "/bin/true").Run(); err != nil {
			return err
		}
	}
	return nil
}

// printer is a command that prints outBytes.
func printer() []string { return []string{"/usr/bin/head", "-c", strconv.Itoa(outBytes), "/dev/zero"} }

func (e *agent) stdout(ctx context.Context) error {
	argv := printer()
	proc, err := e.client.Start(ctx, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: argv[0], Args: argv[1:]}})
	if err != nil {
		return err
	}
	defer proc.Close()
	got := 0
	for {
		ev, err := proc.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		got += len(ev.Stdout)
	}
	if got != outBytes {
		return fmt.Errorf("%d bytes came of %d", got, outBytes)
	}
	return nil
}

func bareStdout(ctx context.Context) error {
	argv := printer()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		if _, err := out.Read(buf); err != nil {
			break
		}
	}
	return cmd.Wait()
}

func (e *agent) upload(ctx context.Context) error {
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	return e.client.WriteFile(ctx, "", e.target, f)
}

func (e *agent) download(ctx context.Context) error {
	body, err := e.client.ReadFile(ctx, "", e.source)
	if err != nil {
		return err
	}
	defer body.Close()
	return writeTo(e.target, body)
}

func (e *agent) bareCopy(context.Context) error {
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	// The wrapper hides the file from io.Copy: copy_file_range would move no bytes through a process at all.
	return writeTo(e.target, struct{ io.Reader }{f})
}

func writeTo(path string, r io.Reader) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, r, make([]byte, 32<<10))
	return errors.Join(err, out.Close())
}
