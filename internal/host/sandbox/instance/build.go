package instance

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/vm"
)

// Build makes the instance from the source until its guest's agent answers. When
// it fails the instance has what was made so far: Discard it. Parked has the guest
// stand still at the end, for the warm pool: see Unpark.
func (i *Instance) Build(ctx context.Context, from Source, parked bool) error {
	run := rollback.Runner{Hook: func(step string) error { return i.at(step + " done") }, Trace: i.owner.Trace}
	steps := i.Steps(from, parked)
	for n, step := range steps {
		steps[n].Do = func(ctx context.Context) error { return tracing.Do(ctx, step.Name, step.Do) }
	}
	return run.Run(ctx, steps...)
}

// Steps are the steps of Build.
func (i *Instance) Steps(from Source, parked bool) []rollback.Step {
	steps := []rollback.Step{{Name: "slot", Do: i.acquireSlot}}
	if len(i.owner.Volumes) > 0 {
		steps = append(steps, rollback.Step{Name: "volumes", Do: i.serveVolumes})
	}
	steps = append(steps, []rollback.Step{
		{Name: "disk", Do: func(ctx context.Context) error { return i.cloneDisk(ctx, from.RootFS) }},
		{Name: "machine", Do: func(ctx context.Context) error { return i.startMachine(ctx, from) }},
		{Name: "ready", Do: func(ctx context.Context) error { return i.waitReady(ctx, from.Settings) }},
	}...)
	if parked {
		steps = append(steps, rollback.Step{Name: "park", Do: i.park})
	}
	return steps
}

// acquireSlot records the slot with everything else that must be known before
// there is a machine.
func (i *Instance) acquireSlot(ctx context.Context) (err error) {
	for {
		i.Slot, err = i.host.Slots.Acquire(ctx, string(i.owner.ID))
		if wrenn.CodeOf(err) != wrenn.Exhausted || !i.owner.MakeRoom(ctx) {
			break
		}
	}
	if err != nil {
		return err
	}
	if err := i.at("slot acquired"); err != nil {
		return err
	}
	i.observe(ctx)
	i.Record.Slot = new(i.Slot.Ref())
	if err := i.owner.Record("slot", i.Record); err != nil || i.owner.Network.IsZero() { // a new slot allows all
		return err
	}
	return i.FollowPolicy(ctx)
}

func (i *Instance) cloneDisk(ctx context.Context, rootfs string) error {
	_, err := storage.Clone(ctx, i.Disk(), rootfs, 0o600)
	return err
}

func (i *Instance) startMachine(ctx context.Context, from Source) (err error) {
	if err := os.Mkdir(i.Dir(), 0o711); err != nil {
		return err
	}
	spec := vm.Spec{
		ID: i.name(), Dir: i.Dir(), VCPUs: i.owner.Size.VCPUs, MemoryMiB: i.owner.Size.MemoryMiB,
		Disks:     []vm.Disk{{Path: i.Disk(), MaxBytes: int64(max(i.owner.DiskMiB, i.owner.MaxDiskMiB)) << 20, Rate: i.host.DiskRate}},
		Net:       vm.NIC{Namespace: i.Slot.Namespace(), TAP: i.Slot.TAP(), MAC: i.Slot.MAC()},
		Exclusive: from.Exclusive,
	}
	if i.host.FirstUID != 0 {
		spec.UID = i.host.FirstUID + uint32(i.Slot.Index())
		spec.GID = spec.UID
	}
	if i.Machine, err = from.Start(ctx, spec); err != nil {
		return err
	}
	i.owner.Started(i.Machine)
	if err := i.at("machine started"); err != nil {
		return err
	}
	i.Record.Machine = new(i.Machine.Ref())
	return i.owner.Record("machine", i.Record)
}

// waitReady waits for the agent in the guest, then tells it the time and its
// identity and reseeds it: a restored guest is another sandbox. Its processes,
// which were frozen before the snapshot, continue after that. Settings, if not nil,
// are those of the guest before it booted; the sandbox's own environment wins.
func (i *Instance) waitReady(ctx context.Context, settings *envdclient.Settings) error {
	ctx, cancel := i.readyContext(ctx)
	defer cancel()
	i.connect()
	if err := i.Guest.WaitReady(ctx, i.Machine.Wait); err != nil {
		return err
	}
	if err := i.GrowDisk(ctx, i.owner.DiskMiB); err != nil {
		return err
	}
	init := envdclient.Init{
		Env: i.owner.Env, Token: i.owner.AccessToken, Volumes: i.mounts(), CABundle: i.bundle(),
		Identity: &envdclient.Identity{ID: string(i.owner.ID), StartCounter: i.Record.Start},
	}
	if settings != nil {
		init.User, init.Workdir = settings.User, settings.Workdir
		init.Env = maps.Clone(settings.Env)
		if init.Env == nil {
			init.Env = map[string]string{}
		}
		maps.Copy(init.Env, i.owner.Env)
	}
	err := i.Guest.Init(ctx, init)
	if err == nil {
		i.trusted = init.CABundle
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// GrowDisk makes the disk and the file system on it as large as they are to be, if
// they are smaller. What is larger stays as it is. Users' processes may run. The limit
// is that of the Owner when the machine was started.
func (i *Instance) GrowDisk(ctx context.Context, toMiB int) error {
	size := int64(toMiB) << 20
	info, err := os.Stat(i.Disk())
	if err != nil || info.Size() >= size {
		return err
	}
	if err := os.Truncate(i.Disk(), size); err != nil {
		return fmt.Errorf("grow the disk: %w", err)
	}
	if err := i.Machine.ResizeDisk(ctx, 0, size); err != nil {
		return fmt.Errorf("grow the disk: %w", err)
	}
	return i.Guest.GrowDisk(ctx, size)
}

// readyContext bounds the wait for the guest's agent.
func (i *Instance) readyContext(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := i.host.ReadyTimeout
	return context.WithTimeoutCause(ctx, limit, wrenn.Errorf(wrenn.DeadlineExceeded, "the guest's agent did not answer within %s", limit))
}

func (i *Instance) connect() {
	i.Guest = envdclient.New(envdclient.Config{Dial: i.Slot.DialContext, Address: network.EnvdAddress, Token: i.owner.AccessToken})
}

// park is the last step of a machine of the warm pool. Its guest has an identity
// by now that no other guest ever has, and does once what it will do first under
// the next identity: under emulation the first time takes ten times as long. Then
// its processes are frozen until the next /init, and the vCPUs stop.
func (i *Instance) park(ctx context.Context) error {
	ctx, cancel := i.readyContext(ctx)
	defer cancel()
	res, err := i.Guest.Exec(ctx, wrenn.ExecCommand{Cmd: "true", User: "root"})
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("true: %s: %.300q", res.Status, res.Stderr)
	}
	if err != nil {
		return err
	}
	if err := i.Freeze(ctx); err != nil {
		return err
	}
	if err := i.at("guest frozen"); err != nil {
		return err
	}
	i.Guest.Close() // a stopped guest does not answer its keepalives
	return i.Machine.Pause(ctx)
}

// Unpark lets a parked machine run, and tells its guest its identity.
func (i *Instance) Unpark(ctx context.Context) error {
	i.observe(ctx)
	if !i.owner.Network.IsZero() {
		if err := i.FollowPolicy(ctx); err != nil {
			return err
		}
	}
	if err := i.serveVolumes(ctx); err != nil {
		return err
	}
	if err := i.Machine.Resume(ctx); err != nil {
		return err
	}
	if err := i.at("machine resumed"); err != nil {
		return err
	}
	return i.waitReady(ctx, nil)
}

// freezePerGiB is what Freeze adds to its limit for each GiB of memory: a fifth of
// it may wait to be written (vm.dirty_ratio), which takes a disk of 50 MB/s 4 s.
const freezePerGiB = 4 * time.Second

// freezeLimit bounds Freeze as a whole.
func (i *Instance) freezeLimit() time.Duration {
	return i.host.FreezeTimeout + freezePerGiB*time.Duration(i.owner.Size.MemoryMiB)/1024
}

// Freeze stops the guest's processes with everything that they wrote on the disk.
// A guest that cannot freeze them is synced: its disk alone would boot as well,
// but its processes see a restored machine before its clock is set.
// DeadlineExceeded when the guest is not done in time, however it answers.
func (i *Instance) Freeze(ctx context.Context) error {
	limit := i.freezeLimit()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := i.freeze(limited)
	if late := limited.Err() != nil || wrenn.CodeOf(err) == wrenn.DeadlineExceeded; err != nil && late && ctx.Err() == nil {
		return &wrenn.Error{
			Code: wrenn.DeadlineExceeded, Err: err,
			Message: fmt.Sprintf("the guest did not write its disk and stop its processes within %s: try again, or pause it with force", limit.Round(time.Second)),
		}
	}
	return err
}

func (i *Instance) freeze(ctx context.Context) error {
	err := i.Guest.Freeze(ctx)
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		return err
	}
	i.host.Log.LogAttrs(ctx, slog.LevelDebug, "guest cannot freeze its processes", slog.Any("err", err))
	res, err := i.Guest.Exec(ctx, wrenn.ExecCommand{Cmd: "sync", User: "root"})
	if err == nil && res.ExitCode != 0 {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox could not write its disk: %s: %.300q", res.Status, res.Stderr)
	}
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}
