// Package rollback undoes work that is half done. A Stack collects what to undo
// while the work goes on; a Runner runs an operation that is a list of named
// steps, each with its own way back.
package rollback

import (
	"context"
	"errors"
	"slices"
	"time"
)

// limit bounds the whole clean-up. It runs when its caller may already be canceled.
const limit = 30 * time.Second

// Stack holds functions that undo work. The zero value is ready. It is not safe
// for concurrent use.
//
//	var undo rollback.Stack
//	defer undo.Run(ctx)
//	...
//	undo.Add(slot.Release)
//	...
//	undo.Keep()
type Stack struct {
	undos []func(context.Context) error
}

// Add pushes a function.
func (s *Stack) Add(undo func(context.Context) error) { s.undos = append(s.undos, undo) }

// AddFunc pushes a function that can neither fail nor block.
func (s *Stack) AddFunc(undo func()) {
	s.Add(func(context.Context) error { undo(); return nil })
}

// Keep forgets all functions: the work is complete.
func (s *Stack) Keep() { s.undos = nil }

// Run calls the functions in reverse order, all of them even if some fail, and
// returns their joined errors. A second Run does nothing. The functions get a
// context that outlives the caller's cancellation, with the caller's values and
// its own deadline.
func (s *Stack) Run(ctx context.Context) error {
	undos := s.undos
	s.undos = nil
	if len(undos) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	var errs []error
	for _, undo := range slices.Backward(undos) {
		if err := undo(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
