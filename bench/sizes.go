package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

// sizes creates sandboxes with large and with small guests in turn, in the way of
// the host agent.
func sizes(ctx context.Context, b *bench) (rows []row, err error) {
	l, err := newLab(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	for _, c := range []struct {
		what         string
		large, small template
	}{
		{"create with %s of memory; bare: with %s", template{"4 GiB", 4096, 0}, template{"256 MiB", 256, 0}},
		{"create with a disk of %s; bare: of %s", template{"20 GiB", boxMemoryMB, 20}, template{"1 GiB", boxMemoryMB, 1}},
	} {
		large, err := l.template(ctx, b, c.large)
		if err != nil {
			return rows, err
		}
		small, err := l.template(ctx, b, c.small)
		if err != nil {
			return rows, err
		}
		figures, err := pairs(ctx, 3*b.rounds, large, small)
		if err != nil {
			return rows, err
		}
		rows = append(rows, untilDone(fmt.Sprintf(c.what, c.large.name, c.small.name), figures, "0.85 to 1.15")...)
	}
	return rows, nil
}

// template is the source of sandboxes.
type template struct {
	name    string
	memory  int // MiB
	diskGiB int // 0 means the image's size
}

// template makes a template and returns a function that measures creating a sandbox from it.
func (l *lab) template(ctx context.Context, b *bench, t template) (func(context.Context) (sample, error), error) {
	dir := filepath.Join(l.store.Dir, l.nextID())
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	guest := l.guest
	if t.diskGiB != 0 {
		var err error
		if guest, err = resized(ctx, guest, filepath.Join(dir, "rootfs"), t.diskGiB); err != nil {
			return nil, err
		}
	}
	m, err := sandbox.Open(ctx, sandbox.Config{
		StateDir: dir, RunDir: filepath.Join(b.dir, filepath.Base(dir)), Driver: l.driver, Slots: l.slots, Store: l.store,
		Guest: sandbox.Guest{Name: "bench", RootFS: guest.RootFS, Kernel: vm.Kernel{Image: guest.Kernel, Initrd: guest.Initrd, Args: guest.Args}},
		Log:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	l.undo.AddFunc(m.Close)
	l.undo.Add(m.DestroyAll)
	size := wrenn.Size{VCPUs: 1, MemoryMiB: t.memory}
	if err := m.Warm(ctx, size); err != nil {
		return nil, err
	}
	// While a template is unused, its first user gets a copy of its memory.
	if _, _, err := ensured(ctx, m, size); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (_ sample, err error) {
		s, took, err := ensured(ctx, m, size)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.Destroy(ctx)) }()
		of, err := readRecord(dir, string(s.ID()))
		if err != nil {
			return nil, err
		}
		return ran(took, of.Machine.PID)
	}, nil
}

func ensured(ctx context.Context, m *sandbox.Manager, size wrenn.Size) (s *sandbox.Sandbox, took float64, err error) {
	took, err = timed(func() (err error) {
		s, err = m.Ensure(ctx, wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: size})
		return err
	})
	return s, took, err
}

// resized returns the guest with a root file system of another size, at path.
func resized(ctx context.Context, guest image.Guest, path string, gib int) (image.Guest, error) {
	if _, err := storage.Clone(ctx, path, guest.RootFS, 0o600); err != nil {
		return guest, err
	}
	for _, args := range [][]string{{"e2fsck", "-fp", path}, {"resize2fs", path, fmt.Sprintf("%dG", gib)}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return guest, fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	guest.RootFS = path
	return guest, os.Truncate(path, int64(gib)<<30)
}
