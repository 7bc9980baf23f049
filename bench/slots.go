package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"wrenn/internal/network"
)

// slots times a slot that was made ahead, and one that was not.
func slots(ctx context.Context, b *bench) (_ []row, err error) {
	ready, err := acquireTimes(ctx, b.rounds, b.rounds)
	if err != nil {
		return nil, err
	}
	made, err := acquireTimes(ctx, 0, b.rounds)
	if err != nil {
		return nil, err
	}
	return []row{
		{what: "slot from the pool", ours: ms(median(ready)), limit: "<= 1 ms"},
		{what: "slot made from nothing", ours: ms(median(made))},
	}, nil
}

func acquireTimes(ctx context.Context, ready, rounds int) (_ []float64, err error) {
	pool, err := openSlots(ctx, ready)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close(ctx)) }()
	var took []float64
	for range rounds {
		var slot *network.Slot
		t, err := timed(func() (err error) {
			slot, err = pool.Acquire(ctx, "bench")
			return err
		})
		if err != nil {
			return nil, err
		}
		took = append(took, t)
		defer func() { err = errors.Join(err, slot.Release(ctx)) }()
	}
	return took, nil
}

// openSlots opens a pool and waits until the slots that it makes ahead are there.
func openSlots(ctx context.Context, ready int) (*network.Pool, error) {
	pool, err := network.Open(ctx, network.Config{
		Prefix: "wbench", Range: netip.MustParsePrefix("10.214.0.0/16"), Ready: ready, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if err := pool.Sweep(ctx); err != nil { // of a run that was killed
		return nil, errors.Join(err, pool.Close(ctx))
	}
	for pool.Stats().Ready < ready {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), pool.Close(ctx))
		}
	}
	return pool, nil
}
