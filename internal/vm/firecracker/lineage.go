package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

// lineage holds the base of the changes that the VMM tracks: the memory file of the
// last snapshot that the machine was restored from or that was taken of it. After a
// snapshot that failed the base is unknown, because the VMM may have forgotten its
// changes by then; the next snapshot writes all of the memory.
//
// The file is held open: its name may change or be removed, its content never changes.
type lineage struct {
	base *os.File // nil while it is unknown
	// prepared is the directory with a clone of base that PrepareSnapshot made; if
	// stale, of an earlier base. "" for none.
	prepared string
	stale    bool
}

func (l *lineage) known() bool { return l.base != nil }

// begin sets the base to the memory of the snapshot in dir; "" sets none. If the file
// cannot be opened the next snapshot writes all of the memory.
func (l *lineage) begin(dir string) {
	l.end()
	if dir == "" {
		return
	}
	if f, err := os.Open(filepath.Join(dir, memoryFile)); err == nil {
		l.base = f
	}
}

// end makes the base unknown. Twice is allowed.
func (l *lineage) end() {
	if l.base != nil {
		l.base.Close()
	}
	l.base, l.stale = nil, true
}

// prepare begins a snapshot in dir with a clone of the base.
func (l *lineage) prepare(ctx context.Context, dir string) error {
	l.prepared, l.stale = "", false
	if err := l.cloneInto(ctx, dir); err != nil {
		return err
	}
	l.prepared = dir
	return nil
}

// ready makes dir ready for a snapshot: empty except for a clone of the base, if that
// is known. The clone is a reflink where the file system supports it.
func (l *lineage) ready(ctx context.Context, dir string) error {
	if l.prepared == dir {
		l.prepared = ""
		if !l.stale {
			return nil
		}
		if err := removeSnapshot(dir); err != nil {
			return err
		}
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	return l.cloneInto(ctx, dir)
}

func (l *lineage) cloneInto(ctx context.Context, dir string) error {
	if l.base == nil {
		return nil
	}
	base := fmt.Sprintf("/proc/self/fd/%d", l.base.Fd())
	if _, err := storage.Clone(ctx, filepath.Join(dir, memoryFile), base, 0o600); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}
