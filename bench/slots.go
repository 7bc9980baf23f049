package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

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
	pool, err := network.Open(ctx, network.Config{
		Name: "wbench", Range: netip.MustParsePrefix("10.214.0.0/16"), Ready: ready, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close(ctx)) }()
	if err := pool.WaitReady(ctx); err != nil {
		return nil, err
	}
	var took []float64
	for range rounds {
		t, err := timed(func() error {
			_, err := pool.Acquire(ctx, "bench")
			return err
		})
		if err != nil {
			return nil, err
		}
		took = append(took, t)
	}
	return took, nil
}
