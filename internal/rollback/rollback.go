// Package rollback undoes half-made work: push an undo after each step, run
// them in reverse unless everything was kept.
package rollback

import (
	"context"
	"errors"
	"slices"
	"time"
)

// limit bounds the whole clean-up; it runs when its caller may already be cancelled.
const limit = 30 * time.Second

// Stack holds undo steps. The zero value is ready. It is not safe for
// concurrent use.
//
//	var undo rollback.Stack
//	defer undo.Run(ctx)
//	...
//	undo.Add(slot.Release)
//	...
//	undo.Keep()
type Stack struct {
	steps []func(context.Context) error
}

// Add pushes a step.
func (s *Stack) Add(step func(context.Context) error) { s.steps = append(s.steps, step) }

// AddFunc pushes a step that can neither fail nor block.
func (s *Stack) AddFunc(step func()) {
	s.Add(func(context.Context) error { step(); return nil })
}

// Keep forgets all steps: the work is whole.
func (s *Stack) Keep() { s.steps = nil }

// Run takes the steps in reverse, all of them even when some fail, and returns
// their joined errors. A second Run does nothing. The steps get a context that
// outlives the caller's cancellation, with its values and a deadline of its own.
func (s *Stack) Run(ctx context.Context) error {
	steps := s.steps
	s.steps = nil
	if len(steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	var errs []error
	for _, step := range slices.Backward(steps) {
		if err := step(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
