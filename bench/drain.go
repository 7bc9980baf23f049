package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/vm/vmproc"
)

const drained = 50 // sandboxes

// drainFifty moves 50 sandboxes that are used all the time from one host to another.
func drainFifty(ctx context.Context, b *bench) (_ []row, err error) {
	f, err := newFakeFleet(ctx, b, 2, drained+1)
	if err != nil {
		return nil, errors.Join(err, f.closeAny(ctx))
	}
	defer func() { err = errors.Join(err, f.close(ctx)) }()
	from, to := hostName(0), hostName(1)
	if _, err := f.api.CordonHost(ctx, to); err != nil {
		return nil, err
	}
	users, err := f.markedUsers(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := f.api.UncordonHost(ctx, to); err != nil {
		return nil, err
	}
	used, stop := context.WithCancel(ctx)
	defer stop()
	var load sync.WaitGroup
	for _, u := range users {
		load.Go(func() { u.work(used, b.think) })
	}
	var notMoved int
	took, err := timed(func() (err error) { notMoved, err = f.drainHost(ctx, from); return err })
	stop()
	load.Wait()
	if err != nil {
		return nil, err
	}
	return drainRows(ctx, users, took, notMoved)
}

// markedUser is a client whose sandbox has a mark in its memory and on its disk.
type markedUser struct {
	rollingUser
	mark string
}

// markedUsers makes them, with their sandboxes.
func (f *fakeFleet) markedUsers(ctx context.Context) ([]*markedUser, error) {
	users := make([]*markedUser, drained)
	for i := range users {
		sb, err := f.api.CreateSandbox(ctx, client.CreateSandbox{Timeout: client.Never})
		if err != nil {
			return nil, fmt.Errorf("sandbox %d: %w", i, err)
		}
		u := &markedUser{rollingUser: rollingUser{api: f.api, id: sb.ID}, mark: rand.Text()}
		for _, file := range []string{vmproc.MemoryFile, vmproc.DiskFile} {
			got, err := u.api.Exec(ctx, u.id, client.Command{Cmd: "dd", Args: []string{"of=" + file, "conv=notrunc"}, User: "root", Stdin: []byte(u.mark)})
			if err != nil || got.ExitCode != 0 {
				return nil, fmt.Errorf("mark %s: %+v, %w", file, got, err)
			}
		}
		users[i] = u
	}
	return users, nil
}

// drainHost drains a host until it is empty, and returns how many sandboxes could not be
// moved at once.
func (f *fakeFleet) drainHost(ctx context.Context, id string) (notMoved int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if _, err := f.api.DrainHost(ctx, id); err != nil {
		return 0, err
	}
	for {
		h, err := f.api.Host(ctx, id)
		if err != nil {
			return notMoved, err
		}
		notMoved = max(notMoved, len(h.Drain.NotMoved))
		if h.Drain.Left == 0 {
			return notMoved, nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return notMoved, fmt.Errorf("%+v: %w", h.Drain, err)
		}
	}
}

// drainRows sums up, after a look at what each sandbox has.
func drainRows(ctx context.Context, users []*markedUser, took float64, notMoved int) ([]row, error) {
	var errs []error
	var longest []float64
	calls, repeated, failed := 0, 0, 0
	for _, u := range users {
		got, err := u.api.Exec(ctx, u.id, client.Command{Cmd: "sh", Args: []string{"-c", "head -c 26 " + vmproc.MemoryFile + "; head -c 26 " + vmproc.DiskFile}, User: "root"})
		if err != nil || string(got.Stdout) != u.mark+u.mark {
			failed++
			errs = append(errs, fmt.Errorf("%s has %+v: %w", u.id, got, err))
		}
		errs, longest = append(errs, u.errs...), append(longest, quantile(u.took, 1))
		calls, repeated = calls+u.calls, repeated+u.repeated
	}
	return []row{
		{what: fmt.Sprintf("drain of %d sandboxes between two hosts: failed, or with other bytes", len(users)), ours: fmt.Sprint(failed), limit: "0"},
		{what: "  could not be moved at once", ours: fmt.Sprint(notMoved), limit: "0"},
		{what: "  the whole drain", ours: fmt.Sprintf("%.1f s", took)},
		{what: "  calls that failed for a client that repeats calls", ours: fmt.Sprintf("%d of %d, %d repeated", len(errs)-failed, calls, repeated), limit: "0"},
		{what: "  the longest command in a sandbox meanwhile, p50 max", ours: fmt.Sprintf("%.2f s %.2f s", median(longest), quantile(longest, 1))},
	}, errors.Join(first(errs)...)
}
