// Package instance has what a sandbox runs in: a network slot, a disk, a machine
// and the way to the agent in its guest. A sandbox gets a new instance with every
// start and every restore. An instance does not know the sandbox's journal: its
// Owner says where to record what must be found again.
package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/network/egress"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/volume"
)

// Host is what the instances of a host are made with. All fields but FirstUID
// are needed.
type Host struct {
	Driver vm.Driver
	Slots  *network.Pool
	Dir    string // has a directory for each machine; exists
	// FirstUID is the first of the user ids that machines run as, one each; 0 runs
	// them as the agent's own user.
	FirstUID     uint32
	ReadyTimeout time.Duration // bounds the wait for the guest's agent
	Volumes      *volume.Store // of the sandboxes; nil when the host has none
	// FreezeTimeout bounds the wait for a guest that freezes, apart from its memory's share.
	FreezeTimeout time.Duration
	DiskRate      vm.DiskRate // of each sandbox's disk
	Log           *slog.Logger
}

// Owner is the sandbox that an instance belongs to.
type Owner struct {
	ID   wrenn.SandboxID
	Dir  string // has the disks of its instances
	Size wrenn.Size
	// DiskMiB is the size of the disk; 0 is that of what the instance is made from.
	DiskMiB int
	// MaxDiskMiB is how large GrowDisk may make it, if that is more.
	MaxDiskMiB int
	Env        map[string]string // of every command of the sandbox
	// AccessToken is what callers of the guest's agent must send; "" is none.
	AccessToken string
	Volumes     []wrenn.VolumeMount
	// Network is what the sandbox may reach. It changes under the sandbox's operation lock.
	Network wrenn.NetworkPolicy
	// Authority and Secrets are for the header rules of Network, and change with it.
	Authority *egress.Authority // nil when it never had such rules
	Secrets   wrenn.SecretValues
	// Egress gets what the guest reaches and is denied. It must not block.
	Egress func(wrenn.EgressEvent)
	// Record writes what must be known of the instance, as its pending one. What
	// names the change.
	Record func(what string, record journal.Instance) error
	// Started is called when Build has started a machine, before it is recorded.
	Started func(vm.Machine)
	// MakeRoom frees a network slot, when none is free, and reports whether it did.
	MakeRoom func(context.Context) bool
	Hook     rollback.Hook // called at each point at which an agent may die
	Trace    func(ctx context.Context, step string, took time.Duration)
}

// Source is what an instance is made from: a guest image or a snapshot. Release it.
type Source struct {
	RootFS   string // cloned
	Snapshot string // that the machine is restored from; "" when it boots
	Guest    string // the image that it boots, or that was booted for the snapshot
	// Settings are those of the guest that a snapshot was made of, for one that boots
	// from its disk; nil keeps those that the machine has.
	Settings *envdclient.Settings
	// Start starts a machine, by booting or restoring it.
	Start func(context.Context, vm.Spec) (vm.Machine, error)
	// Exclusive means that nothing else is made from the source at the same time; see vm.Spec.
	Exclusive bool
	// Release ends the lease on the snapshot.
	Release func()
	// Better, if set, returns a source that makes the same in less time, if there is
	// one by now. Release that, too.
	Better func(context.Context) (Source, bool)
}

// Instance is one instance. Its fields are for the holder of the sandbox's
// operation lock; nil is what it does not have, or not any more.
type Instance struct {
	Record  journal.Instance
	Slot    *network.Slot
	Machine vm.Machine
	Guest   *envdclient.Client

	host    *Host
	owner   *Owner
	unwatch context.CancelFunc // stops the watcher; nil when there is none
	volumes *servedVolumes     // nil when none are served
	trusted string             // the certificates that its guest was told to trust
}

// New returns an instance of which there is no more than what the record says.
func (h *Host) New(owner *Owner, record journal.Instance) *Instance {
	return &Instance{host: h, owner: owner, Record: record}
}

// label tells the instances of a sandbox apart, in names of files and machines.
func (i *Instance) label() string {
	if i.Record.Start <= 1 {
		return ""
	}
	return fmt.Sprintf("-%d", i.Record.Start)
}

func (i *Instance) name() string { return string(i.owner.ID) + i.label() }

// Dir returns the machine's directory. A machine of the warm pool has kept its
// first one, which its record names.
func (i *Instance) Dir() string {
	if ref := i.Record.Machine; ref != nil && ref.Dir != "" {
		return ref.Dir
	}
	return filepath.Join(i.host.Dir, i.name())
}

// Disk returns the path of the disk.
func (i *Instance) Disk() string { return filepath.Join(i.owner.Dir, "root"+i.label()+".ext4") }

// Reassign returns the instance as that of another sandbox, with the next start
// counter there. The caller records it, stops the watcher of i, and calls MoveDisk
// and Unpark of the new one.
func (i *Instance) Reassign(owner *Owner, start uint64) *Instance {
	next := &Instance{host: i.host, owner: owner, Record: i.Record, Slot: i.Slot, Machine: i.Machine}
	next.Record.Start = start
	return next
}

// FollowPolicy has the instance's slot follow the sandbox's network policy.
func (i *Instance) FollowPolicy(ctx context.Context) error {
	i.Slot.SetCredentials(egress.Credentials{Authority: i.owner.Authority, Secrets: i.owner.Secrets.Values})
	return i.Slot.SetPolicy(ctx, i.owner.Network)
}

// TrustAuthority has a guest that runs trust the sandbox's authority, if there are header
// rules and it does not yet.
func (i *Instance) TrustAuthority(ctx context.Context) error {
	bundle := i.bundle()
	if bundle == "" || i.trusted == bundle {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	err := i.Guest.Trust(ctx, bundle)
	if err == nil {
		i.trusted = bundle
	}
	return err
}

// trustTimeout bounds a guest that is told of an authority.
const trustTimeout = 5 * time.Second

// bundle returns the certificates that the guest is to trust, "" without header rules.
func (i *Instance) bundle() string {
	if i.owner.Authority == nil || len(i.owner.Network.Headers) == 0 {
		return ""
	}
	return i.owner.Authority.Certificate
}

// observe has the sandbox's egress log follow the slot. Without it the sandbox works.
func (i *Instance) observe(ctx context.Context) {
	if err := i.Slot.Observe(i.owner.Egress); err != nil {
		i.host.Log.LogAttrs(ctx, slog.LevelWarn, "sandbox has no egress log", slog.String("sandbox", string(i.owner.ID)), slog.Any("err", err))
	}
}

// MoveDisk makes the disk of from, which the VMM has open, that of i.
func (i *Instance) MoveDisk(from *Instance) error { return os.Rename(from.Disk(), i.Disk()) }

// Watch calls ended when the machine ends without Discard or Unwatch. Ended's
// context ends with the watcher. Beside, if not nil, is called at once; its context
// ends with the watcher, too. Workers counts both until they are done.
func (i *Instance) Watch(ctx context.Context, workers *sync.WaitGroup, beside func(context.Context), ended func(ctx context.Context, cause error)) {
	ctx, i.unwatch = context.WithCancel(context.WithoutCancel(ctx))
	machine := i.Machine
	if beside != nil {
		workers.Go(func() { beside(ctx) })
	}
	workers.Go(func() {
		if err := machine.Wait(ctx); ctx.Err() == nil {
			ended(ctx, err)
		}
	})
}

// Unwatch stops the watcher, if there is one.
func (i *Instance) Unwatch() {
	if i.unwatch != nil {
		i.unwatch()
	}
}

// Leave leaves a running instance to the next agent: nothing of this one watches it
// or serves its volumes.
func (i *Instance) Leave() {
	i.Unwatch()
	i.volumes.close()
}

// Discard ends the machine and then releases the slot: a slot whose machine may
// still run must not get to another sandbox. Twice is allowed.
func (i *Instance) Discard(ctx context.Context, keepDisk bool) error {
	i.Unwatch()
	if i.Guest != nil {
		i.Guest.Close()
	}
	if i.Machine != nil {
		if err := i.Machine.Stop(ctx); err != nil {
			return err
		}
		if err := i.at("machine stopped"); err != nil {
			return err
		}
	}
	i.volumes.close()
	if i.Slot != nil {
		if err := i.Slot.Release(ctx); err != nil {
			return err
		}
		if err := i.at("slot released"); err != nil {
			return err
		}
	}
	if keepDisk {
		return os.RemoveAll(i.Dir())
	}
	return errors.Join(os.RemoveAll(i.Dir()), os.RemoveAll(i.Disk()))
}

func (i *Instance) at(point string) error { return i.owner.Hook.At(point) }
