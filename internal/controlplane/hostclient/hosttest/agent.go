// Package hosttest is a host's agent without a host: sandboxes in memory, behind
// the real protocol. The control plane's tests and benchmarks use it.
package hosttest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/wake"
	"wrenn.dev/internal/wire"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

// Agent is a host in memory. Its exported fields are set before it serves.
type Agent struct {
	Capacity hostagentv1.Capacity // zero: 1,000 sandboxes, 1 TB of memory
	// Before and After may fail a call, block it or observe it. Methods are named as
	// in the protocol. After runs when the work is done: its error is a lost answer.
	Before, After func(ctx context.Context, method, id string) error
	// Build, if set, is the work of a build; its error is that of the build.
	Build func(ctx context.Context, req *hostagentv1.BuildTemplateRequest, log func(string)) error
	// Waiting, if set, is why a new sandbox waits for its turn, one reason after the other.
	Waiting func(ctx context.Context, id string) iter.Seq[string]
	// Copy may fail a single copy of a fork.
	Copy func(ctx context.Context, id string) error
	// NoCheckpointForks makes it as a host that does not know copies of checkpoints.
	NoCheckpointForks bool
	// NoConsoleTimes makes it as a host that does not know when a console printed.
	NoConsoleTimes bool
	// NoBuildPolicies makes it as a host whose builds follow no network policy.
	NoBuildPolicies bool
	// Sent, if set, is called with the size of each piece of output that was sent.
	Sent func(n int)
	// HasStore has the host fetch sandboxes.
	HasStore bool
	// Stores has it store what is paused, at once, under its own key.
	Stores bool
	// SharesTemplates has it store its builds at once, fetch those of others, and tell of
	// both. It needs HasStore.
	SharesTemplates bool
	// NoStoreRounds makes it as a host that knows no rounds of uploads.
	NoStoreRounds bool
	// OldestUpload, if set, returns the round of an upload that is at work.
	OldestUpload func() uint64
	// References returns the keys that the host refers to; nil has none.
	References func(wrenn.TeamID) wrenn.StoreReferences
	// Collect does the work of CollectStore; nil deletes nothing.
	Collect func(context.Context, wrenn.StoreCollection) (wrenn.StoreCollected, error)
	// Zone, Labels and Platform are what the host says of itself.
	Zone     string
	Labels   map[string]string
	Platform wrenn.Platform
	// VolumeDir is a directory for files of volumes; without it they have none.
	VolumeDir string

	mu        sync.Mutex // guards what follows
	instance  int
	sandboxes map[string]*sandbox
	// builds are those of the templates of this host.
	builds     map[string]bool
	teams      map[string]string // of builds
	revision   uint64            // of builds
	purged     map[string]bool   // "team/build" that DeleteTemplate named
	volumes    map[string]bool
	creates    int
	resumes    int
	round      uint64
	buildFiles map[string][]byte  // by team/hash
	watchers   map[wake.Chan]bool // of WatchSandboxes
	pauses     []*hostagentv1.PauseSandboxRequest
	boots      int
	copies     []*hostagentv1.CopyCheckpointRequest
}

// sandbox is a sandbox of the host.
type sandbox struct {
	info      *hostagentv1.SandboxInfo
	env       map[string]string
	files     map[string][]byte
	processes map[uint32]*process
	moments   []*moment // checkpoints, oldest first
	head      string    // the one that it continues from
	secrets   map[string]string
	team      string
	held      bool
}

var _ hostagentv1connect.HostAgentServiceHandler = (*Agent)(nil)

// with runs f on the sandboxes, between the hooks.
func (a *Agent) with(ctx context.Context, method, id string, f func() error) error {
	if a.Before != nil {
		if err := a.Before(ctx, method, id); err != nil {
			return wire.ToConnect(err)
		}
	}
	meant, err := meantEpoch(ctx)
	if err == nil {
		err = a.locked(func() error {
			if b := a.sandboxes[id]; b != nil && meant != 0 && (b.info.SupersededBy != 0 || b.info.Epoch != 0 && b.info.Epoch != meant) {
				return wrenn.Errorf(wrenn.Unavailable, "sandbox %s was moved: the call is for epoch %d, and this host has epoch %d", id, meant, b.info.Epoch)
			}
			return f()
		})
	}
	if err != nil {
		return wire.ToConnect(err)
	}
	if a.After != nil {
		return wire.ToConnect(a.After(ctx, method, id))
	}
	return nil
}

// meantEpoch returns the epoch that a call names, 0 for none.
func meantEpoch(ctx context.Context) (uint64, error) {
	call, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return 0, nil
	}
	epoch, err := hostwire.ParseEpochText(call.RequestHeader().Get(hostwire.EpochHeader))
	return uint64(epoch), err
}

func (a *Agent) locked(f func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandboxes == nil {
		a.sandboxes = map[string]*sandbox{}
	}
	return f()
}

func (a *Agent) capacity() *hostagentv1.Capacity {
	c := &hostagentv1.Capacity{
		Sandboxes: cmp.Or(a.Capacity.Sandboxes, 1000), MemoryMb: cmp.Or(a.Capacity.MemoryMb, 1<<20),
		DiskMb: cmp.Or(a.Capacity.DiskMb, 1<<20), DiskMbFree: cmp.Or(a.Capacity.DiskMbFree, 1<<20),
	}
	for _, b := range a.sandboxes {
		c.SandboxesUsed++
		if b.info.Status == hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED {
			continue
		}
		c.MemoryMbUsed += uint64(b.info.MemoryMb)
	}
	return c
}

// Ping answers at once.
func (a *Agent) Ping(ctx context.Context, req *hostagentv1.PingRequest) (res *hostagentv1.PingResponse, err error) {
	err = a.with(ctx, "Ping", "", func() error {
		res = &hostagentv1.PingResponse{HasStore: a.HasStore, Version: "test", Instance: a.name(), Driver: "memory", Capacity: a.capacity(), Zone: a.Zone, Labels: a.Labels,
			Platform: &hostagentv1.Platform{Driver: a.Platform.Driver, Version: a.Platform.Version, Processor: a.Platform.Processor},
		}
		if !a.NoStoreRounds {
			a.round = max(a.round, req.GetStoreRound())
			res.KnowsStoreRounds, res.StoreRound, res.OldestStoreRound = true, a.round, a.round
			if a.OldestUpload != nil {
				res.OldestStoreRound = min(a.round, a.OldestUpload())
			}
		}
		if a.SharesTemplates {
			res.TemplatesRevision = a.revision + 1
		}
		return nil
	})
	return res, err
}

// ListStoreReferences returns what References does.
func (a *Agent) ListStoreReferences(ctx context.Context, req *hostagentv1.ListStoreReferencesRequest) (res *hostagentv1.ListStoreReferencesResponse, err error) {
	var refs wrenn.StoreReferences
	if a.References != nil {
		refs = a.References(wrenn.TeamID(req.GetTeam()))
	}
	return hostwire.StoreReferences(refs), a.with(ctx, "ListStoreReferences", req.GetTeam(), func() error { return nil })
}

// CollectStore does what Collect does.
func (a *Agent) CollectStore(ctx context.Context, req *hostagentv1.CollectStoreRequest) (*hostagentv1.CollectStoreResponse, error) {
	if err := a.with(ctx, "CollectStore", req.GetTeam(), func() error { return nil }); err != nil {
		return nil, err
	}
	var done wrenn.StoreCollected
	var err error
	if a.Collect != nil {
		done, err = a.Collect(ctx, hostwire.ParseCollectRequest(req))
	}
	if err != nil {
		return nil, wire.ToConnect(err)
	}
	return hostwire.CollectResponse(done), nil
}

func (a *Agent) name() string { return fmt.Sprintf("instance-%d", a.instance) }

// CreateSandbox makes a sandbox that runs at once.
func (a *Agent) CreateSandbox(ctx context.Context, req *hostagentv1.CreateSandboxRequest) (*hostagentv1.CreateSandboxResponse, error) {
	id := req.GetSandboxId()
	err := a.with(ctx, "CreateSandbox", id, func() error {
		if b := a.sandboxes[id]; b != nil {
			if b.info.GetTemplate() != req.GetTemplate() || b.info.GetMemoryMb() != req.GetMemoryMb() {
				return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists with another template or size", id)
			}
			return nil
		}
		if c := a.capacity(); c.SandboxesUsed >= c.Sandboxes || c.MemoryMbUsed+uint64(req.GetMemoryMb()) > c.MemoryMb {
			return wrenn.Errorf(wrenn.Exhausted, "this host is full")
		}
		if err := a.fetchBuild(req); err != nil {
			return err
		}
		if g := req.GetGeneration(); g != "" && !a.builds[g] || req.GetTemplate() == "missing" {
			return wrenn.Errorf(wrenn.NotFound, "there is no template %s here", req.GetTemplate())
		}
		for _, mount := range req.GetVolumes() {
			if !a.volumes[mount.GetVolumeId()] {
				return wrenn.Errorf(wrenn.NotFound, "there is no volume %s on this host", mount.GetVolumeId())
			}
		}
		a.creates++
		a.sandboxes[id] = newSandbox(&hostagentv1.SandboxInfo{
			SandboxId: id, Status: hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING, Template: req.GetTemplate(),
			Vcpus: req.GetVcpus(), MemoryMb: req.GetMemoryMb(), TimeoutSec: req.GetTimeoutSec(), Version: 1,
			CreatedAtUnix: time.Now().Unix(), LastActiveAtUnix: time.Now().Unix(),
			OnTimeout: req.GetOnTimeout(), AutoResume: req.GetAutoResume(), NetworkPolicy: req.GetNetworkPolicy(),
			SecretsTag: req.GetSecrets().GetTag(), Epoch: req.GetEpoch(),
			Settings: &hostagentv1.SandboxSettings{OnTimeout: req.GetOnTimeout(), AutoResume: req.GetAutoResume(), CheckpointEverySec: req.GetCheckpointEverySec()},
		}, req.GetEnv())
		a.sandboxes[id].secrets, a.sandboxes[id].team = req.GetSecrets().GetValues(), req.GetTeam()
		return nil
	})
	return &hostagentv1.CreateSandboxResponse{
		SandboxId: id, Status: hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING, NetworkPolicy: req.GetNetworkPolicy(),
		DiskMb: cmp.Or(req.GetDiskMb(), wrenn.DefaultDiskMiB),
	}, err
}

// StartSandbox is CreateSandbox, after what Waiting tells.
func (a *Agent) StartSandbox(ctx context.Context, req *hostagentv1.CreateSandboxRequest, stream *connect.ServerStream[hostagentv1.StartSandboxResponse]) error {
	if a.Waiting != nil {
		for reason := range a.Waiting(ctx, req.GetSandboxId()) {
			if err := stream.Send(&hostagentv1.StartSandboxResponse{Event: &hostagentv1.StartSandboxResponse_Waiting{Waiting: reason}}); err != nil {
				return err
			}
		}
	}
	res, err := a.CreateSandbox(ctx, req)
	if err != nil {
		return err
	}
	return stream.Send(&hostagentv1.StartSandboxResponse{Event: &hostagentv1.StartSandboxResponse_Started{Started: res}})
}

func newSandbox(info *hostagentv1.SandboxInfo, env map[string]string) *sandbox {
	return &sandbox{info: info, env: env, files: map[string][]byte{}, processes: map[uint32]*process{}}
}

// DestroySandbox removes one, or nothing.
func (a *Agent) DestroySandbox(ctx context.Context, req *hostagentv1.DestroySandboxRequest) (*hostagentv1.DestroySandboxResponse, error) {
	err := a.with(ctx, "DestroySandbox", req.GetSandboxId(), func() error {
		if b := a.sandboxes[req.GetSandboxId()]; b != nil {
			b.kill()
			delete(a.sandboxes, req.GetSandboxId())
		}
		return nil
	})
	return &hostagentv1.DestroySandboxResponse{}, err
}

// PauseSandbox pauses a running or paused one; an unresponsive one only by force, or
// if it may be saved as it stands.
func (a *Agent) PauseSandbox(ctx context.Context, req *hostagentv1.PauseSandboxRequest) (*hostagentv1.PauseSandboxResponse, error) {
	if !req.GetForce() && (!req.GetIfAble() || req.GetDiskOnly()) {
		if err := a.locked(func() error { return a.refusal(req.GetSandboxId()) }); err != nil {
			return nil, wire.ToConnect(err)
		}
	}
	_ = a.locked(func() error { a.pauses = append(a.pauses, req); return nil })
	err := a.transition(ctx, "PauseSandbox", req.GetSandboxId(), hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED)
	_ = a.locked(func() error {
		if err == nil {
			a.paused(req)
		}
		return nil
	})
	a.Announce()
	return &hostagentv1.PauseSandboxResponse{DiskOnly: req.GetDiskOnly()}, err
}

// paused holds a paused sandbox and stores it, if that is wanted. The caller must hold mu.
func (a *Agent) paused(req *hostagentv1.PauseSandboxRequest) {
	b := a.sandboxes[req.GetSandboxId()]
	if b == nil || b.info.Status != hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED {
		return
	}
	b.held = b.held || req.GetHold()
	b.info.Epoch = cmp.Or(req.GetEpoch(), b.info.Epoch)
	if b.info.SupersededBy = req.GetSupersededBy(); b.info.SupersededBy != 0 {
		return
	}
	if a.Stores && b.info.StoredKey == "" {
		b.info.StoredAt, b.info.StoredKey = timestamppb.Now(), fmt.Sprintf("teams/%s/snapshots/%s.%d", b.team, req.GetSandboxId(), b.info.Version)
	}
}

// ResumeSandbox resumes a paused or running one.
func (a *Agent) ResumeSandbox(ctx context.Context, req *hostagentv1.ResumeSandboxRequest) (*hostagentv1.ResumeSandboxResponse, error) {
	if req.GetBoot() {
		_ = a.locked(func() error { a.boots++; return nil })
	}
	return &hostagentv1.ResumeSandboxResponse{Boot: req.GetBoot()}, a.transition(ctx, "ResumeSandbox", req.GetSandboxId(), hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING)
}

// Store shows a paused sandbox as stored at key.
func (a *Agent) Store(id wrenn.SandboxID, key string) {
	a.set(id, wrenn.ObservedPaused, func(i *hostagentv1.SandboxInfo) {
		i.StoredAt, i.StoredKey = timestamppb.Now(), key
	})
}

// StoreCheckpoint shows a checkpoint of a sandbox as stored at key.
func (a *Agent) StoreCheckpoint(id wrenn.SandboxID, cp wrenn.CheckpointID, key string) {
	_ = a.locked(func() error { // never fails
		if b := a.sandboxes[string(id)]; b != nil {
			b.info.NewestStored = &hostagentv1.Checkpoint{Id: string(cp), StoredAt: timestamppb.Now(), StoredKey: key}
			if m := b.moment(string(cp)); m != nil {
				m.info.StoredAt, m.info.StoredKey = b.info.NewestStored.StoredAt, key
			}
		}
		return nil
	})
	a.Announce()
}

// FetchSandbox makes a paused sandbox, if it has a store.
func (a *Agent) FetchSandbox(ctx context.Context, req *hostagentv1.FetchSandboxRequest) (*hostagentv1.FetchSandboxResponse, error) {
	err := a.with(ctx, "FetchSandbox", req.GetSandboxId(), func() error {
		if !a.HasStore {
			return wrenn.Errorf(wrenn.FailedPrecondition, "this host has no snapshot store")
		}
		if b := a.sandboxes[req.GetSandboxId()]; b != nil {
			if b.info.StoredKey == req.GetKey() {
				b.info.Epoch = req.GetEpoch()
				return nil
			}
			return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already on this host", req.GetSandboxId())
		}
		a.sandboxes[req.GetSandboxId()] = newSandbox(&hostagentv1.SandboxInfo{
			SandboxId: req.GetSandboxId(), Status: hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED, StoredAt: timestamppb.Now(), StoredKey: req.GetKey(), Epoch: req.GetEpoch(),
		}, nil)
		a.sandboxes[req.GetSandboxId()].team = req.GetTeam()
		return nil
	})
	return &hostagentv1.FetchSandboxResponse{}, err
}

// Pauses returns the pauses that were asked for and not refused, oldest first.
func (a *Agent) Pauses() []*hostagentv1.PauseSandboxRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.pauses)
}

// Boots returns how many resumes asked for a boot.
func (a *Agent) Boots() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.boots
}

func (a *Agent) transition(ctx context.Context, method, id string, to hostagentv1.SandboxStatus) error {
	return a.with(ctx, method, id, func() error {
		b, err := a.live(id)
		if err != nil {
			return err
		}
		a.become(b, to)
		return nil
	})
}

// become changes the status of b. The caller must hold mu.
func (a *Agent) become(b *sandbox, to hostagentv1.SandboxStatus) {
	if b.info.Status == to {
		return
	}
	b.info.Status = to
	b.info.Version++
	b.info.Unresponsive = nil
	b.info.StoredAt, b.info.StoredKey, b.held = nil, "", false
	if to == hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING {
		a.resumes++
	}
}

// live returns a sandbox that has not ended. The caller must hold mu.
func (a *Agent) live(id string) (*sandbox, error) {
	b := a.sandboxes[id]
	if b == nil || b.ended() {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no sandbox %s here", id)
	}
	return b, nil
}

// running returns a sandbox that runs, after it resumed one that may be resumed.
// The caller must hold mu.
func (a *Agent) running(id string) (*sandbox, error) {
	b, err := a.live(id)
	if err != nil {
		return nil, err
	}
	if b.info.Status == hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED {
		if !b.info.AutoResume {
			return nil, wrenn.NotWhilePaused(wrenn.SandboxID(id))
		}
		if b.held {
			return nil, wrenn.Errorf(wrenn.Unavailable, "sandbox %s is being moved to another host", id)
		}
		a.become(b, hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING)
	}
	if b.info.Status != hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s does not run", id)
	}
	return b, a.refusal(id)
}

// refusal returns the error of a call that needs the guest of an unresponsive
// sandbox. The caller must hold mu.
func (a *Agent) refusal(id string) error {
	if b := a.sandboxes[id]; b != nil && b.info.GetUnresponsive() != nil {
		u := b.info.GetUnresponsive()
		return wrenn.Unresponsive{Since: u.GetSince().AsTime(), Reason: u.GetReason()}.Refusal(wrenn.SandboxID(id))
	}
	return nil
}

func (b *sandbox) ended() bool {
	return b.info.Status == hostagentv1.SandboxStatus_SANDBOX_STATUS_STOPPED || b.info.Status == hostagentv1.SandboxStatus_SANDBOX_STATUS_FAILED
}

// ListSandboxes returns all, by id.
func (a *Agent) ListSandboxes(ctx context.Context, _ *hostagentv1.ListSandboxesRequest) (*hostagentv1.ListSandboxesResponse, error) {
	res := &hostagentv1.ListSandboxesResponse{}
	err := a.with(ctx, "ListSandboxes", "", func() error {
		res.Instance, res.TakenAt = a.name(), timestamppb.Now()
		for _, id := range slices.Sorted(maps.Keys(a.sandboxes)) {
			res.Sandboxes = append(res.Sandboxes, copyOf(a.sandboxes[id].info))
		}
		return nil
	})
	return res, err
}

// copyOf copies field by field: a message must not be copied as a value.
func copyOf(i *hostagentv1.SandboxInfo) *hostagentv1.SandboxInfo {
	return &hostagentv1.SandboxInfo{
		SandboxId: i.SandboxId, Status: i.Status, Template: i.Template, Vcpus: i.Vcpus, MemoryMb: i.MemoryMb, TimeoutSec: i.TimeoutSec,
		CreatedAtUnix: i.CreatedAtUnix, LastActiveAtUnix: i.LastActiveAtUnix, Reason: i.Reason, Version: i.Version,
		OnTimeout: i.OnTimeout, AutoResume: i.AutoResume, Unresponsive: i.Unresponsive, EndCause: i.EndCause,
		StoredAt: i.StoredAt, StoredKey: i.StoredKey, NetworkPolicy: i.NetworkPolicy, SecretsTag: i.SecretsTag, Epoch: i.Epoch, SupersededBy: i.SupersededBy, NewestStored: i.NewestStored, Settings: i.Settings,
	}
}

// SetNetworkPolicy changes the policy, which this host has nothing to apply to.
func (a *Agent) SetNetworkPolicy(ctx context.Context, req *hostagentv1.SetNetworkPolicyRequest) (*hostagentv1.SetNetworkPolicyResponse, error) {
	return &hostagentv1.SetNetworkPolicyResponse{KnowsProxies: true}, a.with(ctx, "SetNetworkPolicy", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		b.info.NetworkPolicy = req.GetNetworkPolicy()
		b.info.SecretsTag, b.secrets = req.GetSecrets().GetTag(), req.GetSecrets().GetValues()
		b.info.Version++
		return nil
	})
}

// Policy returns the network policy of a sandbox, nil for one that allows everything.
func (a *Agent) Policy(id wrenn.SandboxID) *hostagentv1.NetworkPolicy {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.sandboxes[string(id)]; b != nil {
		return b.info.GetNetworkPolicy()
	}
	return nil
}

// Secrets returns the values that the host has for a sandbox.
func (a *Agent) Secrets(id wrenn.SandboxID) map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.sandboxes[string(id)]; b != nil {
		return maps.Clone(b.secrets)
	}
	return nil
}

// ForgetSecrets has the host have no values, as after a restart of its agent.
func (a *Agent) ForgetSecrets(id wrenn.SandboxID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.sandboxes[string(id)]
	b.secrets, b.info.SecretsTag = nil, ""
}

// WatchSandboxes answers at once and after each Announce.
func (a *Agent) WatchSandboxes(ctx context.Context, _ *hostagentv1.WatchSandboxesRequest, stream *connect.ServerStream[hostagentv1.WatchSandboxesResponse]) error {
	woken := wake.New()
	err := a.with(ctx, "WatchSandboxes", "", func() error {
		if a.watchers == nil {
			a.watchers = map[wake.Chan]bool{}
		}
		a.watchers[woken] = true
		return nil
	})
	if err != nil {
		return err
	}
	for {
		if err := stream.Send(&hostagentv1.WatchSandboxesResponse{}); err != nil {
			return err
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Announce tells the callers of WatchSandboxes that something has changed.
func (a *Agent) Announce() {
	_ = a.locked(func() error { // never fails
		for c := range a.watchers {
			c.Notify()
		}
		return nil
	})
}

// Silence makes a running sandbox unresponsive for the reason; "" ends that.
func (a *Agent) Silence(id wrenn.SandboxID, since time.Time, reason string) {
	a.set(id, wrenn.ObservedRunning, func(i *hostagentv1.SandboxInfo) {
		if i.Unresponsive = nil; reason != "" {
			i.Unresponsive = &hostagentv1.Unresponsive{Since: timestamppb.New(since), Reason: reason}
		}
	})
}

// EndFor is End with the cause for programs.
func (a *Agent) EndFor(id wrenn.SandboxID, to wrenn.ObservedState, cause hostagentv1.EndCause, reason string) {
	a.set(id, to, func(i *hostagentv1.SandboxInfo) { i.Reason, i.EndCause = reason, cause })
}

// ReadEgress returns one event, unless it is known.
func (a *Agent) ReadEgress(ctx context.Context, req *hostagentv1.ReadEgressRequest) (*hostagentv1.ReadEgressResponse, error) {
	res := &hostagentv1.ReadEgressResponse{}
	return res, a.with(ctx, "ReadEgress", req.GetSandboxId(), func() error {
		if _, err := a.live(req.GetSandboxId()); err != nil {
			return err
		}
		if req.GetAfter() == 0 {
			res.Events = []*hostagentv1.EgressEvent{{Seq: 7, AtUnixMicro: 1735689600000000, Protocol: "tls", Verdict: "denied", Name: "example.com", Port: 443, Reason: "denied"}}
		}
		return nil
	})
}

// ExplainEgress denies everything.
func (a *Agent) ExplainEgress(ctx context.Context, req *hostagentv1.ExplainEgressRequest) (*hostagentv1.ExplainEgressResponse, error) {
	return &hostagentv1.ExplainEgressResponse{Rule: "default deny", Reason: "nothing is allowed"}, a.with(ctx, "ExplainEgress", req.GetSandboxId(), func() error {
		_, err := a.live(req.GetSandboxId())
		return err
	})
}

// ReadMetrics returns three samples, of the last 15 seconds before the year 2025.
func (a *Agent) ReadMetrics(ctx context.Context, req *hostagentv1.ReadMetricsRequest) (*hostagentv1.ReadMetricsResponse, error) {
	res := &hostagentv1.ReadMetricsResponse{}
	err := a.with(ctx, "ReadMetrics", req.GetSandboxId(), func() error {
		if _, err := a.live(req.GetSandboxId()); err != nil {
			return err
		}
		const newYear = 1735689600
		for at := int64(newYear - 15); at < newYear; at += 5 {
			if at >= req.GetFromUnix() && (req.GetToUnix() == 0 || at <= req.GetToUnix()) {
				res.Samples = append(res.Samples, &hostagentv1.MetricsSample{
					AtUnix: at, Cpus: 1, CpuPercent: 12.5, MemoryUsed: 100 << 20, MemoryTotal: 512 << 20, MemoryCache: 50 << 20, DiskUsed: 1 << 30, DiskTotal: 10 << 30,
				})
			}
		}
		return nil
	})
	return res, err
}

// SetSandboxSettings changes the settings.
func (a *Agent) SetSandboxSettings(ctx context.Context, req *hostagentv1.SetSandboxSettingsRequest) (*hostagentv1.SetSandboxSettingsResponse, error) {
	return &hostagentv1.SetSandboxSettingsResponse{}, a.with(ctx, "SetSandboxSettings", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		b.info.Settings = req.GetSettings()
		b.info.OnTimeout, b.info.AutoResume = req.GetSettings().GetOnTimeout(), req.GetSettings().GetAutoResume()
		b.info.Version++
		return nil
	})
}

// Settings returns the settings of a sandbox.
func (a *Agent) Settings(id wrenn.SandboxID) *hostagentv1.SandboxSettings {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.sandboxes[string(id)]; b != nil {
		return b.info.GetSettings()
	}
	return nil
}

// ExtendSandbox changes the timeout, which this host never lets run out by itself: see End.
func (a *Agent) ExtendSandbox(ctx context.Context, req *hostagentv1.ExtendSandboxRequest) (*hostagentv1.ExtendSandboxResponse, error) {
	return &hostagentv1.ExtendSandboxResponse{}, a.with(ctx, "ExtendSandbox", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		b.info.TimeoutSec = req.GetTimeoutSec()
		b.info.Version++
		return nil
	})
}

// End ends a sandbox as its timeout or a fault would.
func (a *Agent) End(id wrenn.SandboxID, to wrenn.ObservedState, reason string) {
	a.set(id, to, func(i *hostagentv1.SandboxInfo) { i.Reason = reason })
}

// Put adds a sandbox that no request created, or changes the state of one.
func (a *Agent) Put(id wrenn.SandboxID, state wrenn.ObservedState) {
	a.set(id, state, func(*hostagentv1.SandboxInfo) {})
}

func (a *Agent) set(id wrenn.SandboxID, to wrenn.ObservedState, change func(*hostagentv1.SandboxInfo)) {
	_ = a.locked(func() error { // never fails
		b := a.sandboxes[string(id)]
		if b == nil {
			b = newSandbox(&hostagentv1.SandboxInfo{SandboxId: string(id), Template: "base", MemoryMb: 512, Vcpus: 1, TimeoutSec: 300}, nil)
			a.sandboxes[string(id)] = b
		}
		b.info.Status = hostwire.Status(to)
		b.info.Version++
		change(b.info)
		if b.ended() {
			b.kill()
		}
		return nil
	})
}

// Claim says that a sandbox has an epoch.
func (a *Agent) Claim(id wrenn.SandboxID, state wrenn.ObservedState, epoch uint64) {
	a.set(id, state, func(i *hostagentv1.SandboxInfo) { i.Epoch = epoch })
}

// Lose forgets a sandbox, as if the host's disk was replaced.
func (a *Agent) Lose(id wrenn.SandboxID) {
	_ = a.locked(func() error { delete(a.sandboxes, string(id)); return nil }) // never fails
}

// Restart is a new start of the agent; sandboxes live on.
func (a *Agent) Restart() {
	_ = a.locked(func() error { a.instance++; return nil }) // never fails
}

// Sandboxes returns the states of all sandboxes.
func (a *Agent) Sandboxes() map[wrenn.SandboxID]wrenn.ObservedState {
	out := map[wrenn.SandboxID]wrenn.ObservedState{}
	_ = a.locked(func() error { // never fails
		for id, b := range a.sandboxes {
			out[wrenn.SandboxID(id)] = hostwire.ParseStatus(b.info.Status)
		}
		return nil
	})
	return out
}

// Epochs returns the epoch of a sandbox on this host, and the one that supersedes it.
func (a *Agent) Epochs(id wrenn.SandboxID) (epoch, supersededBy wrenn.Epoch) {
	_ = a.locked(func() error { // never fails
		if b := a.sandboxes[string(id)]; b != nil {
			epoch, supersededBy = wrenn.Epoch(b.info.Epoch), wrenn.Epoch(b.info.SupersededBy)
		}
		return nil
	})
	return epoch, supersededBy
}

// Timeout returns a sandbox's timeout on the host.
func (a *Agent) Timeout(id wrenn.SandboxID) time.Duration {
	var d time.Duration
	_ = a.locked(func() error { // never fails
		if b := a.sandboxes[string(id)]; b != nil {
			d = time.Duration(b.info.TimeoutSec) * time.Second
		}
		return nil
	})
	return d
}

// Creates counts the sandboxes that were made.
func (a *Agent) Creates() int {
	n := 0
	_ = a.locked(func() error { n = a.creates; return nil }) // never fails
	return n
}

// Resumes counts how often a paused sandbox was resumed.
func (a *Agent) Resumes() int {
	n := 0
	_ = a.locked(func() error { n = a.resumes; return nil }) // never fails
	return n
}

// stream is with for streams, which do not hold mu while they work.
func (a *Agent) stream(ctx context.Context, method, id string, f func() error) error {
	if err := a.with(ctx, method, id, func() error { return nil }); err != nil {
		return err
	}
	err := f()
	if _, ok := err.(*connect.Error); ok { //nolint:errorlint // only what needs no translation
		return err
	}
	return wire.ToConnect(err)
}
