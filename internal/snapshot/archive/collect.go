package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
)

// readers is how many records Collect reads at a time.
const readers = 8

// maxListed bounds Collected.Objects.
const maxListed = 1000

// errDamaged marks a record that no version can use.
var errDamaged = errors.New("it is damaged")

// Needed names what Collect keeps of an owner.
type Needed struct {
	// Records must exist: those that the database names. What their states refer to is
	// kept, too.
	Records []string
	// Lost are kept if they exist, with what their states refer to.
	Lost []string
	// Others are kept if they exist, with their layers.
	Others []string
	// References returns the keys that the state of a record refers to.
	References func(state []byte) ([]string, error)
}

// Limits say what Collect may delete of what nothing needs.
type Limits struct {
	// Through is the last round of which objects are deleted. No upload of the round after
	// it, or of an earlier one, may be at work on any host, nor begin.
	Through uint64
	// Before is when an object must have been written, by the store's clock.
	Before time.Time
	Most   int  // objects; what is left is for another call
	DryRun bool // deletes nothing
}

// Collected is what a call of Collect has deleted or, in a dry run, would delete.
type Collected struct {
	Deleted, Bytes int64
	// Young are the objects that nothing needs and that Limits keep, with YoungBytes. Some
	// of them may be of uploads that are at work.
	Young, YoungBytes int64
	More              bool           // there is more than Limits.Most
	Objects           []objects.Info // the first that were deleted, up to maxListed
}

// Collect deletes the records and layers of an owner that nothing needs. An error says
// what could not be read or deleted; the rest is for the next call. It deletes nothing
// if a record that must exist cannot be read.
//
// Records go before layers, so what is left of a call that was killed is layers alone.
// Lists of the store may be incomplete: what they leave out stays.
func (a *Archive) Collect(ctx context.Context, owner string, needed Needed, limits Limits) (Collected, error) {
	if !isOwner(owner) {
		return Collected{}, wrenn.Errorf(wrenn.Invalid, "%.80q cannot own stored snapshots", owner)
	}
	c := &collection{store: a.Objects, owner: owner, limits: limits, keep: map[string]bool{}}
	if err := c.mark(ctx, needed); err != nil {
		return Collected{}, fmt.Errorf("find what is needed in the snapshot store: %w", err)
	}
	for _, kind := range []string{"snapshots/", "layers/"} {
		if err := c.sweep(ctx, prefixOf(owner)+kind); err != nil {
			return c.done, fmt.Errorf("delete from the snapshot store: %w", err)
		}
	}
	return c.done, nil
}

// collection is one call of Collect.
type collection struct {
	store  objects.Store
	owner  string
	limits Limits
	done   Collected

	mu   sync.Mutex // guards keep while records are read
	keep map[string]bool
}

// mark finds the keys that are kept.
func (c *collection) mark(ctx context.Context, needed Needed) error {
	others := slices.Clone(needed.Others)
	var mu sync.Mutex
	follow := func(ctx context.Context, key string) error {
		rec, err := c.markRecord(ctx, key)
		if err != nil {
			return err
		}
		if rec.State == nil || needed.References == nil {
			return nil
		}
		keys, err := needed.References(rec.State)
		mu.Lock()
		defer mu.Unlock()
		others = append(others, keys...)
		return err
	}
	if err := c.each(ctx, needed.Records, follow); err != nil {
		return err
	}
	err := c.each(ctx, needed.Lost, func(ctx context.Context, key string) error { return unlessUseless(follow(ctx, key)) })
	if err != nil {
		return err
	}
	return c.each(ctx, others, func(ctx context.Context, key string) error {
		_, err := c.markRecord(ctx, key)
		return unlessUseless(err)
	})
}

// unlessUseless returns the error of a record, unless that cannot be used: then its layers
// are not needed.
func unlessUseless(err error) error {
	if wrenn.CodeOf(err) == wrenn.NotFound || errors.Is(err, errDamaged) {
		return nil
	}
	return err
}

// each calls f for each key once, several at a time.
func (c *collection) each(ctx context.Context, keys []string, f func(ctx context.Context, key string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, key := range keys {
		if c.marked(key) {
			continue
		}
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return f(ctx, key)
		})
	}
	return g.Wait()
}

// marked marks a key, and reports whether it was.
func (c *collection) marked(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.keep[key]
	c.keep[key] = true
	return was
}

// markRecord marks the layers of the record at key, and returns it.
func (c *collection) markRecord(ctx context.Context, key string) (*record, error) {
	if !strings.HasPrefix(key, prefixOf(c.owner)) {
		return nil, wrenn.Errorf(wrenn.Invalid, "%.200q is not a record of that team", key)
	}
	text, err := objects.ReadAll(ctx, c.store, key, maxRecord)
	if err != nil {
		return nil, err
	}
	rec, err := parseAnyRecord(text, c.owner, key)
	if err != nil && rec.Format <= format {
		err = errors.Join(err, errDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	for _, f := range rec.Files {
		for _, ref := range f.Layers {
			c.marked(ref.key())
		}
	}
	return &rec, nil
}

// sweep deletes what is not marked below a prefix.
func (c *collection) sweep(ctx context.Context, prefix string) error {
	for object, err := range c.store.List(ctx, prefix) {
		if err != nil {
			return err
		}
		round, ok := roundOfKey(object.Key)
		switch {
		case !ok || c.keep[object.Key]: // another program's, or needed
			continue
		case round > c.limits.Through || !object.Modified.Before(c.limits.Before):
			c.done.Young++
			c.done.YoungBytes += object.Size
			continue
		case c.done.Deleted >= int64(c.limits.Most):
			c.done.More = true
			return nil
		}
		if err := c.remove(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

func (c *collection) remove(ctx context.Context, object objects.Info) error {
	if !c.limits.DryRun {
		if err := c.store.Delete(ctx, object.Key); err != nil {
			return err
		}
	}
	c.done.Deleted++
	c.done.Bytes += object.Size
	if len(c.done.Objects) < maxListed {
		c.done.Objects = append(c.done.Objects, object)
	}
	return nil
}
