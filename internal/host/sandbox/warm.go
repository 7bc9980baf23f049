package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"wrenn"
)

// warmPrefix begins the names of warm snapshots.
const warmPrefix = "base-"

var notInNames = regexp.MustCompile(`[^a-z0-9-]+`)

// warmName names the snapshot from which sandboxes of the shape are restored.
// Another image, or another driver, has another one.
func (m *Manager) warmName(shape Shape) string {
	name := notInNames.ReplaceAllString(strings.ToLower(m.cfg.Guest.Name), "-")
	return fmt.Sprintf(warmPrefix+"%.30s-%s-%d-%d", name, m.cfg.Driver.Name(), shape.VCPUs, shape.MemoryMiB)
}

// Warmed says whether Warm has made the snapshot of this shape.
func (m *Manager) Warmed(shape Shape) bool { return m.snapshots.Has(m.warmName(shape)) }

// Warm makes the snapshot from which Ensure restores sandboxes of this shape,
// instead of booting them, unless it is there. Those of other images and drivers
// are removed when nobody needs them any more. Run keeps a stock of machines from it.
func (m *Manager) Warm(ctx context.Context, shape Shape) error {
	name := m.warmName(shape)
	if err := m.warm(ctx, name, shape); err != nil {
		return err
	}
	m.stock.want(kind{name, shape}, m.cfg.Stock)
	m.stock.rouse()
	return nil
}

func (m *Manager) warm(ctx context.Context, name string, shape Shape) (err error) {
	if err := m.dropWarm(ctx, name); err != nil {
		return err
	}
	// It may be kept no more: an agent of another image has let it go.
	if err := m.snapshots.Pin(name); wrenn.CodeOf(err) != wrenn.NotFound {
		return err
	}
	return m.Build(ctx, Recipe{Name: name, Shape: shape})
}

// origin is the snapshot that is asked for or, without one, the warm snapshot
// of the shape or, without that, the guest image.
func (m *Manager) origin(ctx context.Context, req Request) (origin, error) {
	if req.Snapshot != "" {
		from, shape, err := m.namedRestoration(ctx, req.Snapshot)
		if err == nil && shape != req.Shape {
			from.release()
			err = wrenn.Errorf(wrenn.Invalid, "what the sandbox is to be made from has %d vCPUs and %d MB of memory, which cannot be changed: ask for these, or for none", shape.VCPUs, shape.MemoryMiB)
		}
		return from, err
	}
	warm, err := m.restoration(ctx, m.warmName(req.Shape))
	if err == nil {
		return warm, nil
	}
	if wrenn.CodeOf(err) != wrenn.NotFound {
		m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "base snapshot cannot be used; booting instead", slog.Any("err", err))
	}
	return m.boot(m.cfg.Guest), nil
}

// dropWarm lets the warm snapshots of other images and drivers go, and the one
// of the name if it cannot be used.
func (m *Manager) dropWarm(ctx context.Context, name string) error {
	from, err := m.restoration(ctx, name)
	if err == nil {
		from.release()
	}
	damaged := err != nil && wrenn.CodeOf(err) != wrenn.NotFound
	current, _, _ := strings.Cut(m.warmName(Shape{}), "-0-0")
	for _, id := range m.snapshots.IDs() {
		old := strings.HasPrefix(id, warmPrefix) && !strings.HasPrefix(id, current+"-")
		if !old && (id != name || !damaged) {
			continue
		}
		if err := m.snapshots.Unpin(id); err != nil {
			return fmt.Errorf("remove an old base snapshot: %w", err)
		}
		m.unstock(ctx, id)
	}
	return m.Collect(ctx)
}
