package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
	"wrenn.dev"

	"wrenn.dev/client"
)

// readyMachines is the size of the agent's warm pool.
const readyMachines = 1

// createReady measures the time from a request until the first command is done, for
// sandboxes on pooled machines, and for a VMM that is restored with only the driver.
func createReady(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, settings{"ready": settings{"machines": readyMachines}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	l, err := newLab(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	bare, err := l.freeze(ctx, l.guest, boxMemoryMB, warmExec)
	if err != nil {
		return nil, err
	}
	figures, err := pairs(ctx, 3*b.rounds, s.createReadyOne, func(ctx context.Context) (sample, error) {
		if err := s.fullPool(ctx); err != nil { // filling the pool must not be measured
			return nil, err
		}
		return l.execOne(ctx, bare)
	})
	if err != nil {
		return nil, err
	}
	if err := s.fullPool(ctx); err != nil {
		return nil, err
	}
	pid, err := s.pooledPID()
	if err != nil {
		return nil, err
	}
	private, err := privateMiB(pid)
	if err != nil {
		return nil, err
	}
	answers, done, cpu := figures[0], figures[1], figures[2]
	return []row{
		{"create by the API until a command is done, made ahead; bare: the driver's restore", ms(done.ours), ms(done.bare), done.ratio, "<= 1.15"},
		{"  until the API answers; bare: until envd does", ms(answers.ours), ms(answers.bare), answers.ratio, ""},
		{"  the VMM's CPU time until the command is done", ms(cpu.ours), ms(cpu.bare), cpu.ratio, ""},
		{what: "  private memory of a machine made ahead", ours: fmt.Sprintf("%.0f MiB", private)},
	}, nil
}

// createReadyOne measures the time until a sandbox is usable and until a command in
// it is done. It deletes the sandbox.
func (s *stack) createReadyOne(ctx context.Context) (sample, error) {
	if err := s.fullPool(ctx); err != nil {
		return nil, err
	}
	pid, err := s.pooledPID()
	if err != nil {
		return nil, err
	}
	before, err := cpuSeconds(pid)
	if err != nil {
		return nil, err
	}
	var made *client.Sandbox
	answers, err := timed(func() (err error) {
		made, err = s.box(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	exec, err := timed(func() error {
		_, err := s.api.Exec(ctx, made.ID, client.Command{Cmd: "true"})
		return err
	})
	after, cpuErr := cpuSeconds(pid)
	return sample{answers, answers + exec, after - before}, errors.Join(err, cpuErr, s.api.DeleteSandbox(ctx, made.ID))
}

// pooledPID returns the process of a pooled machine, from its journal.
func (s *stack) pooledPID() (int, error) {
	store, err := s.store()
	if err != nil {
		return 0, err
	}
	journals, err := filepath.Glob(filepath.Join(store, "sandboxes", "*", "sandbox.json"))
	if err != nil {
		return 0, err
	}
	for _, path := range journals {
		journal, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		var of struct {
			Template string
			Other    struct{ Machine struct{ PID int } }
		}
		if err := json.Unmarshal(journal, &of); err != nil {
			return 0, err
		}
		if of.Template == ".pool" {
			return of.Other.Machine.PID, nil
		}
	}
	return 0, errors.New("the warm pool is empty")
}

// execOne measures the same for a machine that the driver restores.
func (l *lab) execOne(ctx context.Context, from snapshot) (_ sample, err error) {
	x, err := l.thaw(ctx, from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.close(ctx)) }()
	exec, err := timed(func() error {
		_, err := x.client.Exec(ctx, wrenn.ExecCommand{Cmd: "true"})
		return err
	})
	cpu, cpuErr := cpuSeconds(x.machine.Ref().PID)
	return sample{x.took[0], x.took[0] + exec, cpu}, errors.Join(err, cpuErr)
}

// fullPool waits until the agent's warm pool is full.
func (s *stack) fullPool(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	want := fmt.Sprintf("wrenn_ready_machines %d", readyMachines)
	for {
		lines, err := s.metrics(ctx)
		if err != nil || slices.Contains(lines, want) {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
