//go:build root

package livetest_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/host/fakehost"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/testkit"
)

// planeConfig is the environment variable with which this program is a control plane.
const planeConfig = "WRENN_TEST_CHAOS_PLANE"

const (
	planes  = 2
	hosts   = 3
	clients = 3
)

func TestMain(m *testing.M) {
	if part, ok := fakehost.Part(); ok {
		run.Main(part)
	}
	if raw := os.Getenv(planeConfig); raw != "" {
		run.Main(func(ctx context.Context, _ []string) error { return servePlane(ctx, raw) })
	}
	pgtest.Main(m)
}

// servePlane is the process of a control plane, which raw configures.
func servePlane(ctx context.Context, raw string) error {
	cfg := controlplane.Defaults()
	if err := json.Unmarshal([]byte(raw), &cfg); err != nil {
		return err
	}
	return controlplane.Run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel})), nil)
}

// logLevel is that of the control planes and agents.
const logLevel = slog.LevelWarn

// setting returns the value of an environment variable, or usual.
func setting(t *testing.T, name string, usual uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	testkit.Must(t, err)
	return n
}

// TestChaos has clients that retry use two control planes with three hosts and a snapshot
// store, while processes are killed and stopped, connections fail, hosts are drained and
// lost. Then every sandbox has the state and the bytes that its client knows of it, or
// failed with a host that was declared lost; and after their deletion nothing is left on
// the hosts. WRENN_TEST_CHAOS_SEED repeats the plan of faults and of calls.
func TestChaos(t *testing.T) {
	seed := setting(t, "WRENN_TEST_CHAOS_SEED", rand.Uint64())
	lasts := time.Duration(setting(t, "WRENN_TEST_CHAOS_SECONDS", 30)) * time.Second
	t.Logf("WRENN_TEST_CHAOS_SEED=%d", seed)
	random := func(of uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, of)) }
	f := newFleet(t)
	loaded, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	var load sync.WaitGroup
	for i := range clients {
		u := f.newUser(i, random(uint64(2+i)))
		load.Go(func() { u.work(t, loaded) })
	}
	load.Go(func() { f.move(t, loaded, random(1)) })
	faults := f.hurt(t, loaded, random(0))
	load.Wait()
	f.ready(t)
	f.report(t, faults)
	f.check(t)
	f.empty(t)
}

// pause waits, and reports whether ctx still holds.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
