package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"wrenn.dev"
)

// runSizes makes the snapshots that are wanted, one at a time, until ctx ends. One
// that fails is wanted again after as many boots.
func (m *Manager) runSizes(ctx context.Context) {
	for {
		size, ok := m.sizes.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-m.sizes.wake:
				continue
			}
		}
		began := time.Now()
		err := m.makeSize(ctx, size)
		m.sizes.done(size)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.logError(ctx, slog.LevelWarn, "cannot make a snapshot of a size that is asked for often; sandboxes of it boot", err,
				slog.Int("vcpus", size.VCPUs), slog.Int("memory_mib", size.MemoryMiB))
		default:
			m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "made a snapshot of a size that is asked for often",
				slog.Int("vcpus", size.VCPUs), slog.Int("memory_mib", size.MemoryMiB), slog.Duration("took", time.Since(began)))
		}
	}
}

// makeSize makes the size's snapshot before other boots get their turn, because they
// will be restored from it, and then removes those that are too many.
func (m *Manager) makeSize(ctx context.Context, size wrenn.Size) error {
	if m.Warmed(size) {
		return nil
	}
	if err := m.makeBase(ctx, m.baseName(size), size, true); err != nil {
		return err
	}
	m.sizes.used(size)
	return m.dropSizes(ctx)
}

// dropSizes removes the snapshots of sizes that are more than may be kept.
func (m *Manager) dropSizes(ctx context.Context) error {
	extra := m.sizes.extra(m.baseSizes())
	if len(extra) == 0 {
		return nil
	}
	for _, size := range extra {
		name := m.baseName(size)
		if err := m.snapshots.Unpin(name); err != nil && wrenn.CodeOf(err) != wrenn.NotFound {
			return fmt.Errorf("remove a snapshot of a size: %w", err)
		}
		m.pool.drop(ctx, name)
	}
	return m.Collect(ctx)
}

// baseSizes returns the sizes that have a base snapshot of this image and driver.
func (m *Manager) baseSizes() (found []wrenn.Size) {
	for _, name := range m.snapshots.Pinned() {
		var size wrenn.Size
		prefix := m.basePrefix()
		if _, err := fmt.Sscanf(name, prefix+"%d-%d", &size.VCPUs, &size.MemoryMiB); err == nil && m.baseName(size) == name {
			found = append(found, size)
		}
	}
	return found
}
