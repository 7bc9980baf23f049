package service

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/scheduler"
)

const (
	// maxSpreads and spreadTTL are of the counts of teams' sandboxes: they are a
	// preference, so that they may be old.
	maxSpreads = 4 << 10
	spreadTTL  = 10 * time.Second
)

// load is sandboxes and their memory.
type load struct {
	sandboxes        int
	memoryMB, diskMB int64
}

func (l load) add(o load) load {
	return load{l.sandboxes + o.sandboxes, l.memoryMB + o.memoryMB, l.diskMB + o.diskMB}
}

func (l load) sub(o load) load {
	return load{l.sandboxes - o.sandboxes, l.memoryMB - o.memoryMB, l.diskMB - o.diskMB}
}

// need returns the request for a place for something of that size.
func need(size wrenn.Size, diskMiB int) scheduler.Request {
	return scheduler.Request{MemoryMB: size.MemoryMiB, DiskMB: cmp.Or(diskMiB, wrenn.DefaultDiskMiB)}
}

// request returns the request for a place for a new sandbox.
func (f *fleet) request(ctx context.Context, sb *wrenn.Sandbox, only wrenn.HostID) scheduler.Request {
	r := need(sb.Size, sb.DiskMiB)
	r.Requires, r.Only, r.Team = sb.Requires, only, f.teamOnHosts(ctx, sb.Team)
	r.Except = map[wrenn.HostID]bool{}
	return r
}

// restoring returns the request for a place for a paused sandbox.
func (f *fleet) restoring(ctx context.Context, sb *wrenn.Sandbox) scheduler.Request {
	r := f.request(ctx, sb, "")
	r.Origin, r.Snapshot = sb.Host, &wrenn.Platform{}
	if m := f.member(sb.Host); m != nil {
		_, info := m.known()
		r.Snapshot = &info.Platform
	}
	if len(sb.Volumes) > 0 {
		r.Only = sb.Host
	}
	return r
}

// teamSpread is where the sandboxes of a team are: as the database said, and what this
// replica has placed since.
type teamSpread struct {
	mu     sync.Mutex // guards onHost
	onHost map[wrenn.HostID]int
}

func (s *teamSpread) add(id wrenn.HostID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onHost[id]++
}

// teamOnHosts returns how many sandboxes of a team are on each host, nil if that is not
// known or of no use. The database is asked every spreadTTL at most.
func (f *fleet) teamOnHosts(ctx context.Context, team wrenn.TeamID) map[wrenn.HostID]int {
	if len(f.all()) < 2 {
		return nil
	}
	s, ok := f.spread.Get(team, time.Now())
	if !ok {
		counts, err := f.store.TeamOnHosts(ctx, team)
		if err != nil {
			f.log.LogAttrs(ctx, slog.LevelDebug, "placing without knowing where the team's sandboxes are", slog.Any("err", err))
			return nil
		}
		s = &teamSpread{onHost: counts}
		f.spread.Put(team, s, time.Now())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.onHost)
}

// placed counts a sandbox of a team that was sent to a host.
func (f *fleet) placed(team wrenn.TeamID, on wrenn.HostID) {
	if s, ok := f.spread.Get(team, time.Now()); ok {
		s.add(on)
	}
}

// reserve picks a host for a sandbox and reserves its memory and disk. The caller
// releases the reservation.
func (f *fleet) reserve(r *scheduler.Request) (*reservation, error) {
	picked, err := scheduler.Pick(f.candidates(true), r)
	if wrenn.CodeOf(err) == wrenn.Exhausted {
		// The host may have counted what is being made already: let it decide.
		picked, err = scheduler.Pick(f.candidates(false), r)
	}
	if wrenn.CodeOf(err) == wrenn.Unavailable && r.Only != "" {
		return nil, f.whyNotOnly(r.Only)
	}
	if err != nil {
		return nil, err
	}
	m := f.member(picked.Host)
	if m == nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "host %s was removed just now; try again", picked.Host)
	}
	on := m.reserve(1, r.MemoryMB, r.DiskMB)
	on.why = picked.String()
	return on, nil
}

// whyNotOnly is the error of a request that needs one host, which could not be asked.
func (f *fleet) whyNotOnly(only wrenn.HostID) error {
	if m := f.member(only); m != nil {
		if up, _ := m.known(); up {
			return wrenn.Errorf(wrenn.Unavailable, "host %s, which has the template or a volume of the sandbox, takes no new sandboxes now: an operator has cordoned it", only)
		}
	}
	return wrenn.Errorf(wrenn.Unavailable, "host %s, which has the template or a volume of the sandbox, cannot be reached; try again in a moment", only)
}

// candidates returns the hosts as they are known; pending adds the load that they may
// not have counted yet, and what they refused since their last answer.
func (f *fleet) candidates(pending bool) []scheduler.Host {
	members := f.all()
	hosts := make([]scheduler.Host, len(members))
	for i, m := range members {
		hosts[i] = m.candidate(pending)
	}
	return hosts
}

func (m *member) candidate(pending bool) scheduler.Host {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := scheduler.Host{
		ID: m.id, Status: m.row.Status, Reachable: m.up, Zone: m.zone, Labels: m.labels,
		HasStore: m.info.HasStore, FetchesTemplates: m.fetchesTemplates(), Platform: m.info.Platform, Capacity: m.info.Capacity,
	}
	if pending {
		sum := m.making.add(m.made)
		h.PendingSandboxes, h.PendingMemoryMB, h.PendingDiskMB, h.RefusedMB = sum.sandboxes, sum.memoryMB, sum.diskMB, m.refusedMB
	}
	return h
}

// reservation is sandboxes of one size that are to be made on a host.
type reservation struct {
	*member
	sandboxes        int
	memoryMB, diskMB int // of each
	why              string
}

// reserve counts n sandboxes that are to be made. The caller releases them.
func (m *member) reserve(n, memoryMB, diskMB int) *reservation {
	r := &reservation{member: m, sandboxes: n, memoryMB: memoryMB, diskMB: diskMB}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making = m.making.add(r.load(n))
	return r
}

// release ends the reservation; made of its sandboxes exist now. It is called once.
func (r *reservation) release(made int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.making = r.making.sub(r.load(r.sandboxes))
	r.made = r.made.add(r.load(made))
}

// refused records that the host was full, until it answers the next ping.
func (r *reservation) refused() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refusedMB == 0 || r.memoryMB < r.refusedMB {
		r.refusedMB = r.memoryMB
	}
}

func (r *reservation) load(n int) load {
	return load{n, int64(n) * int64(r.memoryMB), int64(n) * int64(r.diskMB)}
}
