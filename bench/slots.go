package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"wrenn.dev/internal/network"
)

// slots measures acquiring a slot that the pool made ahead of demand, and one that it did not.
func slots(ctx context.Context, b *bench) (_ []row, err error) {
	ready, err := acquireTimes(ctx, b, b.rounds)
	if err != nil {
		return nil, err
	}
	made, err := acquireTimes(ctx, b, 0)
	if err != nil {
		return nil, err
	}
	return []row{
		{what: "slot from the pool", ours: ms(median(ready)), limit: "<= 1 ms"},
		{what: "slot made from nothing", ours: ms(median(made))},
	}, nil
}

func acquireTimes(ctx context.Context, b *bench, ready int) (_ []float64, err error) {
	pool, err := openSlots(ctx, b, ready)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close(ctx)) }()
	var took []float64
	for range b.rounds {
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

// networks returns the agent's network and that of the benchmarks: two halves of one range.
func (b *bench) networks() (agents, ours network.Config) {
	half := b.slots.Bits() + 1
	upper := b.slots.Addr().As4()
	upper[(half-1)/8] |= 1 << (7 - (half-1)%8)
	return network.Config{Prefix: b.prefix + "s", Range: netip.PrefixFrom(b.slots.Addr(), half)},
		network.Config{Prefix: b.prefix + "l", Range: netip.PrefixFrom(netip.AddrFrom4(upper), half)}
}

// openSlots opens a pool and waits until it has made its slots ahead of demand.
func openSlots(ctx context.Context, b *bench, ready int) (*network.Pool, error) {
	_, cfg := b.networks()
	cfg.Ready, cfg.Log = ready, slog.New(slog.DiscardHandler)
	pool, err := network.Open(ctx, cfg)
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
