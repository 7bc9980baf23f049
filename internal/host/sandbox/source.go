package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/vm"
)

// basePrefix begins the names of base snapshots.
const basePrefix = "base-"

// diskMiB returns the size of a new disk that is made from the file source: the wanted
// one, or the source's if that is 0. Invalid when it is smaller than the source's: a
// file system that is in use cannot shrink.
func diskMiB(source string, wanted int) (int, error) {
	info, err := os.Stat(source)
	if err != nil {
		return 0, err
	}
	has := int(info.Size() >> 20)
	if wanted != 0 && wanted < has {
		return 0, wrenn.Errorf(wrenn.Invalid, "the disk of the template or snapshot has %d MiB and cannot become smaller: ask for that or more, or leave the size of the disk out", has)
	}
	return cmp.Or(wanted, has), nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9-]+`)

// baseName names the snapshot of the base guest from which sandboxes of the size
// are restored. Another image, or another driver, has another one.
func (h *host) baseName(size wrenn.Size) string {
	return fmt.Sprintf("%s%d-%d", h.basePrefix(), size.VCPUs, size.MemoryMiB)
}

// basePrefix begins the names of the base snapshots of this image and driver. The
// driver has no dash there, so that "qemu-" does not begin the names of qemu-kvm.
func (h *host) basePrefix() string {
	name := notInNames.ReplaceAllString(strings.ToLower(h.cfg.Guest.Name), "-")
	return fmt.Sprintf(basePrefix+"%.30s-%s-", name, strings.ReplaceAll(h.cfg.Driver.Name(), "-", ""))
}

// guestSource is the source of sandboxes that boot a guest.
func (h *host) guestSource(guest Guest) instance.Source {
	return instance.Source{RootFS: guest.RootFS, Guest: guest.Name, Release: func() {}, Start: func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		spec.Kernel = guest.Kernel
		return h.cfg.Driver.Start(ctx, spec)
	}}
}

// baseSource is the base snapshot of the size or, without that, the guest image.
// A size that is asked for often gets a snapshot.
func (h *host) baseSource(ctx context.Context, size wrenn.Size) instance.Source {
	if base, ok := h.baseSnapshot(ctx, size); ok {
		return base
	}
	h.sizes.booted(size)
	boot := h.guestSource(h.cfg.Guest)
	boot.Better = func(ctx context.Context) (instance.Source, bool) { return h.baseSnapshot(ctx, size) }
	return boot
}

// baseSnapshot is the base snapshot of the size, if there is one that can be used.
func (h *host) baseSnapshot(ctx context.Context, size wrenn.Size) (instance.Source, bool) {
	if h.sizes.isWanted(size) {
		return instance.Source{}, false
	}
	base, err := h.snapshotSource(ctx, h.baseName(size))
	if err == nil {
		h.sizes.used(size)
		return base, true
	}
	if wrenn.CodeOf(err) != wrenn.NotFound {
		h.logError(ctx, slog.LevelWarn, "base snapshot cannot be used; booting instead", err)
	}
	return instance.Source{}, false
}

// bootSource is the source of sandboxes that boot from the disk of a snapshot.
func (h *host) bootSource(ctx context.Context, id string) (instance.Source, error) {
	snap, release, err := h.snapshots.Load(ctx, id)
	if err != nil {
		return instance.Source{}, err
	}
	return h.loadedDisk(snap, release)
}

// loadedDisk is bootSource for a loaded snapshot, whose lease it takes over.
func (h *host) loadedDisk(snap *snapshot.Snapshot, release func()) (from instance.Source, err error) {
	text, err := snap.Settings()
	from = h.guestSource(Guest{Name: snap.Guest, RootFS: snap.Disk(), Kernel: h.cfg.Guest.Kernel})
	if err == nil && text != nil {
		from.Settings, err = envdclient.ParseSettings(text)
	}
	if err != nil {
		release()
		return instance.Source{}, fmt.Errorf("snapshot %s: %w", snap.ID, err)
	}
	from.Release = release
	return from, nil
}

// snapshotSource is the source of sandboxes that are restored from a snapshot, or
// boot from one of a disk alone.
func (h *host) snapshotSource(ctx context.Context, id string) (instance.Source, error) {
	snap, release, err := h.snapshots.Load(ctx, id)
	if err != nil {
		return instance.Source{}, err
	}
	return h.loadedSource(snap, release)
}

// namedSource is the source for a snapshot that a caller asks for by its name,
// and the size of its sandboxes. NotFound also when it was removed.
func (h *host) namedSource(ctx context.Context, name string) (instance.Source, wrenn.Size, error) {
	snap, release, err := h.loadNamed(ctx, name)
	if err != nil {
		return instance.Source{}, wrenn.Size{}, err
	}
	from, err := h.loadedSource(snap, release)
	return from, wrenn.Size{VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB}, err
}

// loadNamed loads a snapshot by its name. NotFound also when it was removed, and
// exists only because sandboxes run from it.
func (h *host) loadNamed(ctx context.Context, name string) (*snapshot.Snapshot, func(), error) {
	snap, release, err := h.snapshots.Load(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if !snap.Pinned {
		release()
		return nil, nil, wrenn.Errorf(wrenn.NotFound, "snapshot %s was removed", name)
	}
	return snap, release, nil
}

// loadedSource is the source for a loaded snapshot, whose lease it takes over.
func (h *host) loadedSource(snap *snapshot.Snapshot, release func()) (instance.Source, error) {
	if snap.DiskOnly {
		return h.loadedDisk(snap, release)
	}
	if driver := h.cfg.Driver.Name(); snap.Driver != driver {
		release()
		return instance.Source{}, wrenn.Errorf(wrenn.FailedPrecondition, "snapshot %s cannot be used: it is of driver %s, and this host works with %s", snap.ID, snap.Driver, driver)
	}
	return instance.Source{RootFS: snap.Disk(), Snapshot: snap.ID, Guest: snap.Guest, Release: release, Start: func(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
		return h.cfg.Driver.Restore(ctx, spec, snap.Machine())
	}}, nil
}
