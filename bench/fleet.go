package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
)

// firstRounds is how long to wait after a control plane connects to its hosts for
// the first time: it compares all of them with its rows at once.
const firstRounds = 20 * time.Second

// The kinds of calls to a control plane with many hosts.
const (
	kindPage    = "a page of 100; bare: SELECT 1"
	kindNext    = "  the page after it"
	kindRunning = "  a page of those that run"
	kindGet     = "  one sandbox"
	kindCreate  = "create; bare: the same rows written straight"
	bareSelect  = "SELECT 1"
	bareInsert  = "insert"
	tick        = "10 ms"
)

// fleet measures only the control plane: its hosts are simulated, their protocol and
// the database are real. All sandboxes belong to one team, which is the worst case.
func fleet(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := started(ctx, b, func(s *stack) ([]hostOf, error) { return s.simulate(ctx, b.hosts) })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	conn, err := pgx.Connect(ctx, s.db.URL("wrenn"))
	if err != nil {
		return nil, err
	}
	s.undo.Add(conn.Close)
	if err := s.populate(ctx, conn, b.sandboxes); err != nil {
		return nil, fmt.Errorf("fill the hosts: %w", err)
	}
	fmt.Fprintln(os.Stderr, "  the hosts are full")
	if err := pause(ctx, firstRounds); err != nil {
		return nil, err
	}
	l := &latencies{}
	if err := s.manage(ctx, b, conn, l); err != nil {
		return nil, err
	}
	plane, err := statusMiB(s.plane.pid, "VmRSS")
	if err != nil {
		return nil, err
	}
	rows := []row{{what: fmt.Sprintf("%d hosts with %d sandboxes: the control plane, resident", b.hosts, b.sandboxes), ours: fmt.Sprintf("%.0f MiB", plane)}}
	for _, k := range []struct{ kind, bare, limit string }{
		{kindPage, bareSelect, "p99 <= 20 ms"}, {kindNext, bareSelect, ""}, {kindRunning, bareSelect, ""}, {kindGet, bareSelect, ""},
		{kindCreate, bareInsert, "p99 <= 50 ms"},
	} {
		rows = append(rows, row{what: k.kind + ", p50 p99", ours: l.both(k.kind), bare: l.both(k.bare), limit: k.limit})
	}
	return append(rows, row{what: "  meanwhile a sleep of 10 ms took, p50 p99", bare: l.both(tick)}), errors.Join(first(l.errs)...)
}

// simulate serves hosts of hosttest until the stack is closed.
func (s *stack) simulate(ctx context.Context, n int) ([]hostOf, error) {
	var hosts []hostOf
	for i := range n {
		agent := &hosttest.Agent{}
		server, err := hosttest.Serve(ctx, agent)
		if err != nil {
			return nil, err
		}
		s.undo.AddFunc(server.Stop)
		s.agents = append(s.agents, agent)
		hosts = append(hosts, hostOf{hostName(i), server.URL()})
	}
	return hosts, nil
}

func hostName(i int) string { return fmt.Sprintf("h%d", i) }

// populate writes the rows of running sandboxes, and adds these to the simulated hosts.
func (s *stack) populate(ctx context.Context, conn *pgx.Conn, boxes int) error {
	var team string
	if err := conn.QueryRow(ctx, "SELECT id::text FROM teams WHERE name = 'bench'").Scan(&team); err != nil {
		return err
	}
	var rows [][]any
	began := time.Now().Add(-24 * time.Hour)
	for n := range boxes * len(s.agents) {
		i, id := n%len(s.agents), wrenn.NewSandboxID()
		s.agents[i].Put(id, wrenn.ObservedRunning)
		at := began.Add(time.Duration(n) * 100 * time.Millisecond)
		rows = append(rows, []any{
			string(id), team, hostName(i), "base", "running", 1, 512, 300,
			map[string]string{"number": fmt.Sprint(n)}, at, at, at, at, 3,
		})
	}
	columns := []string{
		"id", "team_id", "host_id", "template", "state", "vcpus", "memory_mb", "timeout_sec",
		"metadata", "created_at", "started_at", "last_active_at", "updated_at", "version",
	}
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{"sandboxes"}, columns, pgx.CopyFromRows(rows)); err != nil {
		return err
	}
	for _, sql := range []string{
		`INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
		 SELECT id, v, 'pending', 'running', host_id, 'bench', '' FROM sandboxes, generate_series(1, 3) AS v`,
		"VACUUM ANALYZE", // autovacuum would have done this by then
		"CHECKPOINT",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// manage makes one call after the other, each together with its bare limit.
func (s *stack) manage(ctx context.Context, b *bench, conn *pgx.Conn, l *latencies) error {
	ctx, cancel := context.WithTimeout(ctx, b.lasts)
	defer cancel()
	var team string
	if err := conn.QueryRow(ctx, "INSERT INTO teams (name) VALUES ('bare') RETURNING id::text").Scan(&team); err != nil {
		return err
	}
	for ctx.Err() == nil {
		var last client.Sandbox
		l.call(ctx, tick, func() error { return pause(ctx, 10*time.Millisecond) })
		l.call(ctx, bareSelect, func() error { _, err := conn.Exec(ctx, "SELECT 1"); return err })
		s.pages(ctx, l, &last)
		l.call(ctx, kindRunning, func() error {
			for _, err := range s.api.Sandboxes(ctx, client.ListSandboxes{States: []client.State{client.Running}, PageSize: 100}) {
				return err
			}
			return nil
		})
		l.call(ctx, kindGet, func() error { _, err := s.api.Sandbox(ctx, last.ID); return err })
		l.call(ctx, bareInsert, func() error { return insert(ctx, conn, team) })
		var made *client.Sandbox
		l.call(ctx, kindCreate, func() (err error) {
			made, err = s.api.CreateSandbox(ctx, client.CreateSandbox{Metadata: map[string]string{"number": "new"}})
			return err
		})
		if made == nil {
			continue
		}
		if err := s.api.DeleteSandbox(ctx, made.ID); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// pages reads two pages.
func (s *stack) pages(ctx context.Context, l *latencies, last *client.Sandbox) {
	const size = 100
	next, stop := iter.Pull2(s.api.Sandboxes(ctx, client.ListSandboxes{PageSize: size}))
	defer stop()
	read := func(n int) func() error {
		return func() (err error) {
			for range n {
				var ok bool
				if *last, err, ok = next(); err != nil || !ok {
					return err
				}
			}
			return nil
		}
	}
	l.call(ctx, kindPage, read(size))
	l.call(ctx, kindNext, read(1)) // its request uses the page token of the first page
}

// insert writes the rows that a create writes first.
func insert(ctx context.Context, conn *pgx.Conn, team string) error {
	_, err := conn.Exec(ctx, `
		WITH made AS (
			INSERT INTO sandboxes (id, team_id, template, state, vcpus, memory_mb, timeout_sec)
			VALUES ($1, $2, 'base', 'stopped', 1, 512, 300) RETURNING *
		)
		INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason)
		SELECT id, version, '', state, '', 'bench', '' FROM made`, string(wrenn.NewSandboxID()), team)
	return err
}
