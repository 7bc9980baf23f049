package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"wrenn.dev/client"
)

// tenantLoads are what a tenant does all the time, beside a neighbor: a script in its
// sandbox, and perhaps calls. Nothing of it leaves the machine.
var tenantLoads = []struct {
	name, script string
	calls        func(ctx context.Context, s *stack, id string) error
}{
	{"CPU", "while :; do :; done", nil},
	{"disk", "while :; do dd if=/dev/zero of=/load bs=1M count=64 oflag=direct 2>/dev/null; done", nil},
	{"network, by downloads", "sleep 1000", downloads},
	// The slot drops connections to this network; each is a new one.
	{"connections one after another", `python3 -c '
import socket
while True:
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("192.0.2.1", 9))
    s.close()'`, nil},
}

// neighbors measures how long commands in a sandbox take while another tenant uses all
// that its own sandbox may, one thing after another.
func neighbors(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	quiet, err := s.box(ctx)
	if err != nil {
		return nil, err
	}
	idle, err := s.execsFor(ctx, quiet.ID, b.window)
	if err != nil {
		return nil, err
	}
	rows := []row{{what: fmt.Sprintf("exec true beside nothing for %v: p50 p99", b.window), ours: idle.both("exec")}}
	for _, load := range tenantLoads {
		beside, err := s.beside(ctx, func(ctx context.Context, id string) error {
			return errors.Join(s.script(ctx, id, load.script, load.calls), ctx.Err())
		}, func() (*latencies, error) { return s.execsFor(ctx, quiet.ID, b.window) })
		if err != nil {
			return rows, fmt.Errorf("%s: %w", load.name, err)
		}
		ratio := beside.quantile("exec", 0.99) / idle.quantile("exec", 0.99)
		rows = append(rows, row{
			what: fmt.Sprintf("the same beside a tenant at full load (%s), its p99 to that of nothing", load.name),
			ours: beside.both("exec"), bare: idle.both("exec"), ratio: spread{ratio, ratio, ratio}, limit: "<= 2",
		})
	}
	return rows, nil
}

// beside runs measure while load loads a new sandbox, which is deleted then.
func (s *stack) beside(ctx context.Context, load func(ctx context.Context, id string) error, measure func() (*latencies, error)) (_ *latencies, err error) {
	box, err := s.box(ctx)
	if err != nil {
		return nil, err
	}
	loading, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- load(loading, box.ID) }()
	defer func() {
		stop()
		if failed := <-ended; !errors.Is(failed, context.Canceled) {
			err = errors.Join(err, fmt.Errorf("the load ended early: %w", failed))
		}
		err = errors.Join(err, s.api.DeleteSandbox(ctx, box.ID))
	}()
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	return measure()
}

// script runs a shell script in a sandbox, and calls beside it, until ctx ends.
func (s *stack) script(ctx context.Context, id, script string, calls func(context.Context, *stack, string) error) error {
	var beside error
	var work sync.WaitGroup
	if calls != nil {
		work.Go(func() { beside = calls(ctx, s, id) })
	}
	_, err := s.api.Exec(ctx, id, client.Command{Cmd: "/bin/bash", Args: []string{"-c", script}, User: "root", Timeout: time.Hour})
	work.Wait()
	return errors.Join(err, beside)
}

// downloads downloads a file of a sandbox again and again.
func downloads(ctx context.Context, s *stack, id string) error {
	if _, err := s.api.Exec(ctx, id, client.Command{Cmd: "truncate", Args: []string{"-s", "64M", "/tmp/zeros"}}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		body, err := s.api.ReadFile(ctx, id, "/tmp/zeros", client.FileOptions{})
		if err != nil {
			return err
		}
		if _, err = io.Copy(io.Discard, body); errors.Join(err, body.Close()) != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// execsFor runs commands one after another for a while.
func (s *stack) execsFor(ctx context.Context, id string, lasts time.Duration) (*latencies, error) {
	l := &latencies{}
	ctx, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	for ctx.Err() == nil {
		l.call(ctx, "exec", func() error {
			_, err := s.api.Exec(ctx, id, client.Command{Cmd: "true"})
			return err
		})
	}
	return l, errors.Join(first(l.errs)...)
}
