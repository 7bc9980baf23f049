package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"wrenn.dev/client"
)

const (
	loadBoxes = 4
	settle    = 5 * time.Second // until work left from the start is done
	beat      = 20 * time.Millisecond
	execEvery = 50 // an emulated guest starts only a few programs a second
)

// load runs many clients that poll, list and execute, and measures the memory of
// the control plane and the agent before and after.
func load(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	var ids []string
	for range loadBoxes {
		made, err := s.box(ctx)
		if err != nil {
			return nil, err
		}
		ids = append(ids, made.ID)
	}
	idle, err := s.resident(ctx, "control plane and agent idle, resident (proportional)", "<= 60 MB")
	if err != nil {
		return nil, err
	}
	l := &latencies{}
	if err := s.ask(ctx, b, ids, l); err != nil {
		return nil, err
	}
	after, err := s.resident(ctx, fmt.Sprintf("the same %v after it", settle), "")
	if err != nil {
		return nil, err
	}
	rows := []row{idle}
	for _, what := range []string{"GET /health by one more client, meanwhile", "get a sandbox", "list 20", "exec true"} {
		rows = append(rows, row{what: fmt.Sprintf("%d clients for %v: %s, p50 p99", b.clients, b.lasts, what), ours: l.both(what)})
	}
	return append(rows, row{what: "  errors", ours: fmt.Sprintf("%d of %d", len(l.errs), l.count), limit: "0"}, after), errors.Join(first(l.errs)...)
}

func first(errs []error) []error { return errs[:min(len(errs), 3)] }

// resident measures the memory of both after a moment without requests.
func (s *stack) resident(ctx context.Context, what, limit string) (row, error) {
	if err := pause(ctx, settle); err != nil {
		return row{}, err
	}
	plane, agent, err := s.eachMiB(func(pid int) (float64, error) { return statusMiB(pid, "VmRSS") })
	if err != nil {
		return row{}, err
	}
	planePSS, agentPSS, err := s.eachMiB(proportionalMiB)
	const mb = float64(1<<20) / 1e6
	return row{what: what, limit: limit, ours: fmt.Sprintf("%.0f + %.0f = %.0f MB (%.0f + %.0f)",
		mb*plane, mb*agent, mb*(plane+agent), mb*planePSS, mb*agentPSS)}, err
}

// latencies are how long calls took, by kind.
type latencies struct {
	mu    sync.Mutex // guards the fields below
	took  map[string][]float64
	errs  []error
	count int
}

// call makes a call and records its latency or error, unless the time was up.
func (l *latencies) call(ctx context.Context, kind string, f func() error) {
	took, err := timed(f)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s: %w", kind, err))
		return
	}
	if l.took == nil {
		l.took = map[string][]float64{}
	}
	l.took[kind] = append(l.took[kind], took)
}

// both formats the median and the 99th percentile of a kind.
func (l *latencies) both(kind string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%s %s", ms(median(l.took[kind])), ms(quantile(l.took[kind], 0.99)))
}

// quantile returns the q-quantile of a kind, in seconds.
func (l *latencies) quantile(kind string, q float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return quantile(l.took[kind], q)
}

// ask runs the clients, each with its own connection, until the time is up.
func (s *stack) ask(ctx context.Context, b *bench, ids []string, l *latencies) error {
	ctx, cancel := context.WithTimeout(ctx, b.lasts)
	defer cancel()
	var askers sync.WaitGroup
	defer askers.Wait()
	for i := range b.clients {
		c, err := s.client()
		if err != nil {
			return err
		}
		id := ids[i%len(ids)]
		askers.Go(func() {
			for n := i; pause(ctx, rand.N(2*b.think+1)) == nil; n++ {
				switch {
				case n%execEvery == 0:
					l.call(ctx, "exec true", func() error {
						_, err := c.Exec(ctx, id, client.Command{Cmd: "true", Timeout: 5 * time.Minute})
						return err
					})
				case n%2 == 0:
					l.call(ctx, "list 20", func() error { return firstPage(ctx, c, 20) })
				default:
					l.call(ctx, "get a sandbox", func() error { _, err := c.Sandbox(ctx, id); return err })
				}
			}
		})
	}
	for pause(ctx, beat) == nil {
		l.call(ctx, "GET /health by one more client, meanwhile", func() error { return s.health(ctx) })
	}
	return nil
}

// firstPage reads one page of a list.
func firstPage(ctx context.Context, c *client.Client, size int) error {
	for _, err := range c.Sandboxes(ctx, client.ListSandboxes{PageSize: size}) {
		return err
	}
	return nil
}

// health makes a request that the server answers without any work.
func (s *stack) health(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
