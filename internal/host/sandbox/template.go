package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/snapshot"
)

// Recipe is how a snapshot that sandboxes start from is made.
type Recipe struct {
	Name string // of the snapshot
	// Owner has the snapshot stored for other hosts; "" has it not stored.
	Owner wrenn.TeamID
	Size  wrenn.Size
	// DiskMiB is the size of the disk; 0 is that of the guest's.
	DiskMiB int
	// MinFreeDiskMiB is what is free of the disk at the end, at least: the disk grows
	// for it, to MaxDiskMiB at most, where 0 is no limit.
	MinFreeDiskMiB, MaxDiskMiB int
	// Guest boots; nil is the base guest. Its files may be removed when Build has returned.
	Guest *Guest
	// Booted, if set, names a snapshot of the guest just after its boot, from which Work
	// restores it. Without that snapshot the guest boots, and Work makes it.
	Booted string
	// Env is for every command of the sandboxes that have none themselves.
	Env map[string]string
	// Network is what the guest may reach until the snapshot.
	Network wrenn.NetworkPolicy
	// Prepare, if set, does in the guest what is to be done before the snapshot.
	// What it has started keeps running in every sandbox.
	Prepare func(context.Context, *envdclient.Client) error
	// Note goes with the snapshot, see KeptSnapshot; some KiB at most.
	Note []byte

	urgent bool // see Request
}

// Build boots a guest, has it prepared, warms it up, and keeps it under a name, as
// Snapshot does; of the guest itself nothing is left. While it is built it counts
// as a sandbox. AlreadyExists when the name is taken.
func (m *Manager) Build(ctx context.Context, r Recipe) (err error) {
	guest := m.cfg.Guest
	if r.Guest != nil {
		guest = *r.Guest
	}
	req, err := r.request(guest)
	if err != nil {
		return err
	}
	s, err := m.create(ctx, req, m.guestSource(guest))
	if err != nil {
		return fmt.Errorf("boot the guest: %w", err)
	}
	defer func() {
		if err := s.Destroy(context.WithoutCancel(ctx)); err != nil {
			s.logError(ctx, slog.LevelError, "guest of a template cannot be removed", err)
		}
	}()
	if r.Prepare != nil {
		if err := prepareGuest(ctx, s, r.Prepare); err != nil {
			return err
		}
	}
	if err := s.growFree(ctx, r.MinFreeDiskMiB, r.MaxDiskMiB); err != nil {
		return err
	}
	warmUp(ctx, s)
	return s.snapshot(ctx, snapshot.Manifest{ID: r.Name, Metadata: r.Note, Owner: string(r.Owner)})
}

// request returns the sandbox in which the recipe is followed.
func (r *Recipe) request(guest Guest) (request, error) {
	disk, err := diskMiB(guest.RootFS, r.DiskMiB)
	most := 0
	if r.MinFreeDiskMiB > 0 {
		most = cmp.Or(r.MaxDiskMiB, largestDiskMiB)
	}
	return request{
		id: wrenn.NewSandboxID(), urgent: r.urgent, maxDiskMiB: most,
		SandboxSpec: wrenn.SandboxSpec{Template: journal.BuildTemplate, Size: r.Size, DiskMiB: disk, Env: r.Env, Network: r.Network},
	}, err
}

const (
	largestDiskMiB = 16 << 20 // that ext4 with blocks of 4 KiB can have, nearly

	diskStepMiB = 128 // a group of blocks of ext4; disks grow by multiples of it
	diskTables  = 50  // a 50th of a new part of a disk is for tables of ext4; it is a 62nd
)

// growFree grows the disk of a running sandbox until minMiB are free, but not beyond
// mostMiB unless that is 0.
func (s *Sandbox) growFree(ctx context.Context, minMiB, mostMiB int) error {
	if minMiB == 0 {
		return nil
	}
	locked, err := s.lock(ctx, StatusRunning)
	if err != nil {
		return err
	}
	defer locked.unlock()
	usage, err := s.Guest().Usage(ctx)
	if err != nil {
		return err
	}
	missing := minMiB - int((usage.DiskTotal-usage.DiskUsed)>>20)
	if missing <= 0 {
		return nil
	}
	missing += missing/diskTables + diskStepMiB
	want := s.request.DiskMiB + missing - missing%diskStepMiB
	if mostMiB > 0 && want > mostMiB {
		return wrenn.Errorf(wrenn.Invalid, "a disk of which %d MiB are free needs %d MiB, and %d are allowed: ask for less, or have the operator raise limits.disk_mb of the control plane", minMiB, want, mostMiB)
	}
	return locked.perform(ctx, operation{name: "growth of the disk"}, func(ctx context.Context, _ *rollback.Stack) error {
		return s.instance.GrowDisk(ctx, want)
	})
}

// prepareGuest calls prepare with the guest, which stays for as long.
func prepareGuest(ctx context.Context, s *Sandbox, prepare func(context.Context, *envdclient.Client) error) error {
	release, err := s.Use(ctx)
	if err != nil {
		return err
	}
	defer release()
	return prepare(ctx, s.Guest())
}

// warmUpPrograms are what sandboxes are used for.
var warmUpPrograms = [][]string{
	{"true"}, {"sh", "-c", "cat /dev/null"}, {"bash", "-c", "ls / >/dev/null"}, {"python3", "-c", "import json, os, sys"},
}

// warmUp runs what sandboxes are used for, so that every machine that is made
// from the snapshot has it in memory, which it shares with the others, instead
// of reading it from its disk. Programs that an image does not have are left out.
func warmUp(ctx context.Context, s *Sandbox) {
	for _, argv := range warmUpPrograms {
		if _, err := s.Guest().Exec(ctx, wrenn.ExecCommand{Cmd: argv[0], Args: argv[1:]}); err != nil {
			s.log(ctx, slog.LevelDebug, "guest cannot run a program", slog.String("program", argv[0]), slog.Any("err", err))
		}
	}
}

// Kept is a snapshot that Snapshot or Build has made.
type Kept struct {
	Size    wrenn.Size
	DiskMiB int
	Bytes   int64  // on the disk, shared ones included
	Note    []byte // of the Recipe
	// DiskOnly is that of SnapshotDisk.
	DiskOnly bool
}

// KeptSnapshot returns what the snapshot of a name is. NotFound when there is none, or
// it was removed and a sandbox still needs it; FailedPrecondition when it is damaged.
func (m *Manager) KeptSnapshot(ctx context.Context, name string) (Kept, error) {
	snap, release, err := m.loadNamed(ctx, name)
	if err != nil {
		return Kept{}, err
	}
	defer release()
	return keptOf(snap)
}

func keptOf(snap *snapshot.Snapshot) (Kept, error) {
	disk, err := diskMiB(snap.Disk(), 0)
	return Kept{wrenn.Size{VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB}, disk, snap.DataBytes(), snap.Metadata, snap.DiskOnly}, err
}

// KeptSnapshots lists those that KeptSnapshot finds.
func (m *Manager) KeptSnapshots() []string { return m.snapshots.Pinned() }

// RemoveSnapshot deletes a snapshot that Snapshot or Build made. Its files are
// removed when no sandbox needs them. NotFound when there is none. With an owner, what
// the snapshot store has of it is deleted before: if that fails it stays, and if this
// host does not have it the objects of another host are deleted.
func (m *Manager) RemoveSnapshot(ctx context.Context, name string, owner wrenn.TeamID) error {
	allow, err := m.uploads.forbid(ctx, name)
	defer allow()
	if err != nil {
		return err
	}
	if owner != "" && m.HasStore() {
		if err := m.archive.RemoveTemplate(ctx, string(owner), name); err != nil {
			return err
		}
	}
	if err := m.snapshots.Unpin(name); err != nil {
		return err
	}
	m.pool.drop(ctx, name)
	return m.Collect(ctx)
}

// Warmed reports whether Warm has made the snapshot of this size.
func (m *Manager) Warmed(size wrenn.Size) bool { return m.snapshots.Has(m.baseName(size)) }

// Warm makes the snapshot from which Ensure restores sandboxes of this size,
// instead of booting them, unless it exists. Those of other images and drivers
// are removed when they are not needed any more. Run keeps a pool of machines
// from it.
func (m *Manager) Warm(ctx context.Context, size wrenn.Size) error {
	name := m.baseName(size)
	if err := m.makeBase(ctx, name, size, false); err != nil {
		return err
	}
	m.sizes.keep(size)
	m.pool.want(kind{name, size})
	return nil
}

func (m *Manager) makeBase(ctx context.Context, name string, size wrenn.Size, urgent bool) (err error) {
	if err := m.dropBases(ctx, name); err != nil {
		return err
	}
	// An agent of another image may have unpinned it.
	if err := m.snapshots.Pin(name); wrenn.CodeOf(err) != wrenn.NotFound {
		return err
	}
	return m.Build(ctx, Recipe{Name: name, Size: size, urgent: urgent})
}

// dropBases unpins the base snapshots of other images and drivers, and the one of
// the name if it cannot be used.
func (m *Manager) dropBases(ctx context.Context, name string) error {
	from, err := m.snapshotSource(ctx, name)
	if err == nil {
		from.Release()
	}
	damaged := err != nil && wrenn.CodeOf(err) != wrenn.NotFound
	for _, id := range m.snapshots.IDs() {
		old := strings.HasPrefix(id, basePrefix) && !strings.HasPrefix(id, m.basePrefix())
		if !old && (id != name || !damaged) {
			continue
		}
		if err := m.snapshots.Unpin(id); err != nil {
			return fmt.Errorf("remove an old base snapshot: %w", err)
		}
		m.pool.drop(ctx, id)
	}
	return m.Collect(ctx)
}
