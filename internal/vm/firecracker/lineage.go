package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// lineage knows what the VMM's tracked changes are changes of: the memory file
// of the last snapshot, which a machine that was restored has come from, or that was
// taken of it. A snapshot that failed, even in part, makes it unknown, because the VMM may
// have forgotten the changes by then; the next one writes all of the memory.
//
// The file is held open: its name may change, and be removed, and what it is
// never does.
type lineage struct {
	base *os.File // nil while it is unknown
	// prepared is the directory that PrepareSnapshot has put a clone of base
	// into, or of what was the base then, if it is stale; "" for none.
	prepared string
	stale    bool
}

func (l *lineage) known() bool { return l.base != nil }

// begin starts with the snapshot in dir, "" for none. A memory file that cannot
// be opened costs time, at the next snapshot, and nothing else.
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

// prepare makes a snapshot in dir begin with the base.
func (l *lineage) prepare(ctx context.Context, dir string) error {
	l.prepared, l.stale = "", false
	if err := l.cloneInto(ctx, dir); err != nil {
		return err
	}
	l.prepared = dir
	return nil
}

// ready makes sure that dir, where a snapshot is to go, is empty but for a
// clone of the base, if that is known: a reflink where the file system can.
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
