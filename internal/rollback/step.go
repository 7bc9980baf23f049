package rollback

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is a named part of an operation.
type Step struct {
	// Name is in errors, and is what Hook and Trace get.
	Name string
	// Do does the work.
	Do func(context.Context) error
	// Undo reverts Do; nil if there is nothing to revert. It also runs when Do
	// itself failed, so it must accept work that is half done or not begun.
	Undo func(context.Context) error
}

// Hook lets tests stop an operation after a step. An error that it returns makes
// the step fail. A hook that never returns stands for a crash of the process:
// nothing more is done, and nothing is undone. Steps of different operations may
// call it at the same time.
type Hook func(step string) error

// At calls the hook after a step that no Runner runs. A nil hook does nothing.
func (h Hook) At(step string) error {
	if h == nil {
		return nil
	}
	return h(step)
}

// Runner runs the steps of operations. The zero value is ready.
type Runner struct {
	// Hook, if set, is called after each step that succeeded.
	Hook Hook
	// Trace, if set, gets the name and the duration of each step that succeeded.
	Trace func(ctx context.Context, step string, took time.Duration)
}

// Run runs the steps in order. If one fails, or ctx ends between two of them, it
// undoes in reverse those that were begun. The error then is that of the step,
// with its name before it, joined with the errors of Undo.
func (r Runner) Run(ctx context.Context, steps ...Step) (err error) {
	var undo Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	for _, step := range steps {
		if err := r.run(ctx, &undo, step); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
	}
	undo.Keep()
	return nil
}

func (r Runner) run(ctx context.Context, undo *Stack, step Step) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if step.Undo != nil {
		undo.Add(step.Undo)
	}
	began := time.Now()
	if err := step.Do(ctx); err != nil {
		return err
	}
	if r.Trace != nil {
		r.Trace(ctx, step.Name, time.Since(began))
	}
	return r.Hook.At(step.Name)
}
