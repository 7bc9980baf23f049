package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"wrenn.dev/client"
)

// buildSteps is how many steps of a build come before the one that changes.
const buildSteps = 9

// changedStep is a step of a build that takes a while, which is more than what starting
// and saving a machine takes. n makes it another one.
func changedStep(n int) string {
	return fmt.Sprintf("echo %d > /changed; head -c 256M /dev/zero | sha256sum; head -c 16M /dev/urandom > /data; sync", n)
}

// builds compares the build of a template of which only the last step has changed with
// that step alone, run in a new sandbox.
func builds(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	n := 0
	changed := func(ctx context.Context) (sample, error) {
		n++
		return seconds(func(ctx context.Context) error { return s.build(ctx, n) })(ctx)
	}
	alone := func(ctx context.Context) (sample, error) {
		box, err := s.api.CreateSandbox(ctx, client.CreateSandbox{MemoryMB: boxMemoryMB, Timeout: client.Never})
		if err != nil {
			return nil, err
		}
		took, err := seconds(func(ctx context.Context) error {
			ran, err := s.api.Exec(ctx, box.ID, client.Command{Cmd: "/bin/bash", Args: []string{"-l", "-c", changedStep(n)}, Timeout: 10 * startWait})
			if err == nil && ran.ExitCode != 0 {
				err = fmt.Errorf("the step ended with %d: %s", ran.ExitCode, ran.Stderr)
			}
			return err
		})(ctx)
		return took, errors.Join(err, s.api.DeleteSandbox(ctx, box.ID))
	}
	if _, err := changed(ctx); err != nil { // all steps, and the guest's first boot
		return nil, err
	}
	figures, err := pairs(ctx, b.rounds, changed, alone)
	if err != nil {
		return nil, err
	}
	f := figures[0]
	return []row{{fmt.Sprintf("build of %d steps whose last one has changed; bare: that step alone in a sandbox", buildSteps+1), inSeconds(f.ours), inSeconds(f.bare), f.ratio, "<= 1.5"}}, nil
}

// build builds a template whose last step is the changedStep n, and waits for it.
func (s *stack) build(ctx context.Context, n int) error {
	b := client.BuildTemplate{Name: "bench", FromTemplate: "base", VCPUs: 1, MemoryMB: boxMemoryMB, User: "root"}
	for i := range buildSteps {
		b.Steps = append(b.Steps, client.BuildStep{Kind: "RUN", Args: []string{"echo " + strconv.Itoa(i) + " >> /steps"}})
	}
	b.Steps = append(b.Steps, client.BuildStep{Kind: "RUN", Args: []string{changedStep(n)}})
	begun, err := s.api.BuildTemplate(ctx, b)
	if err != nil {
		return err
	}
	done, err := s.api.FollowBuild(ctx, begun.Template, begun.ID, func(string) {})
	if err != nil {
		return err
	}
	if done.State != client.BuildReady {
		return fmt.Errorf("the build is %s: %s", done.State, done.Reason)
	}
	return nil
}

func inSeconds(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond).String()
}
