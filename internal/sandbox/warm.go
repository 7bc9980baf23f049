package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"wrenn"
)

// warmTemplate marks the sandboxes that warm snapshots are taken of. They are
// nobody's: the next agent does not adopt them.
const warmTemplate = ".warm"

// warmPrefix begins the names of warm snapshots.
const warmPrefix = "base-"

var notInNames = regexp.MustCompile(`[^a-z0-9-]+`)

// warmName names the snapshot from which sandboxes of the shape are restored.
// Another image, or another driver, has another one.
func (m *Manager) warmName(shape Shape) string {
	name := notInNames.ReplaceAllString(strings.ToLower(m.cfg.Guest.Name), "-")
	return fmt.Sprintf(warmPrefix+"%.30s-%s-%d-%d", name, m.cfg.Driver.Name(), shape.VCPUs, shape.MemoryMiB)
}

// Warm makes the snapshot from which Ensure restores sandboxes of this shape,
// instead of booting them, unless it is there.
func (m *Manager) Warm(ctx context.Context, shape Shape) (err error) {
	name := m.warmName(shape)
	if _, _, err := m.openSnapshot(name); err == nil {
		return nil
	}
	if m.Live() == 0 { // else a machine may still need an old one
		if err := m.dropWarm(); err != nil {
			return err
		}
	}
	s, err := m.createNew(ctx, Request{ID: wrenn.NewSandboxID(), Template: warmTemplate, Shape: shape}, m.boot())
	if err != nil {
		return fmt.Errorf("boot the base guest: %w", err)
	}
	err = s.Snapshot(ctx, name)
	if destroyErr := s.Destroy(context.WithoutCancel(ctx)); destroyErr != nil {
		m.cfg.Log.LogAttrs(ctx, slog.LevelError, "base guest cannot be removed", slog.String("sandbox", string(s.id)), slog.Any("err", destroyErr))
	}
	return err
}

// origin is the warm snapshot of the shape or, without one, the guest image.
func (m *Manager) origin(ctx context.Context, shape Shape) origin {
	warm, _, err := m.restoration(m.warmName(shape))
	if err == nil {
		return warm
	}
	if wrenn.CodeOf(err) != wrenn.NotFound {
		m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "base snapshot cannot be used; booting instead", slog.Any("err", err))
	}
	return m.boot()
}

// dropWarm removes the warm snapshots of other images and drivers.
func (m *Manager) dropWarm() error {
	entries, err := os.ReadDir(m.snapshots())
	if err != nil {
		return err
	}
	current, _, _ := strings.Cut(m.warmName(Shape{}), "-0-0")
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), warmPrefix) || strings.HasPrefix(e.Name(), current+"-") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(m.snapshots(), e.Name())); err != nil {
			return fmt.Errorf("remove an old base snapshot: %w", err)
		}
	}
	return nil
}
