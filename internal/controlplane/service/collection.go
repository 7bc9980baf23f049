package service

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

const (
	// collectAsks is how many hosts are asked at a time.
	collectAsks = 16
	// collectCalls bounds the calls by which what nothing needs of one team is deleted, each
	// of a bounded number of objects. The rest is for the next time.
	collectCalls = 100
)

// storeHosts are the hosts of a fleet whose uploads matter, at one moment.
type storeHosts struct {
	members []*member
	deletes *member // does the work; nil when no host has a store
	current uint64  // the latest round that one of them knows
	oldest  uint64  // the earliest round of an upload that is at work, or may begin
}

// through returns the last round of which objects may be deleted, see package archive. ok
// is false when that is none.
func (h *storeHosts) through() (round uint64, ok bool) {
	return h.oldest - min(h.oldest, 2), h.deletes != nil && h.oldest >= 2
}

// storeHosts asks all hosts for the rounds of their uploads, and tells them the round. It
// is FailedPrecondition, which names the host, unless each host answers that may ever upload
// again: also one that this process cannot reach may be storing something.
func (c *core) storeHosts(ctx context.Context, round uint64) (*storeHosts, error) {
	members, gone, err := c.uploadingMembers(ctx)
	if err != nil {
		return nil, err
	}
	out := &storeHosts{}
	var mu sync.Mutex // guards out
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(collectAsks)
	for _, m := range members {
		g.Go(func() error {
			info, err := m.client.Ping(ctx, round)
			switch {
			case err != nil && gone[m.id]:
				return nil
			case err != nil:
				return fmt.Errorf("host %s may be storing something: if it does not come back, declare it lost: %w", m.id, err)
			case !info.HasStore && !info.StoreRounds.Known:
				return nil
			case !info.StoreRounds.Known:
				return wrenn.Errorf(wrenn.FailedPrecondition, "the agent of host %s is too old to tell which uploads are at work: update it", m.id)
			}
			mu.Lock()
			defer mu.Unlock()
			out.add(m, info)
			return nil
		})
	}
	return out, g.Wait()
}

func (h *storeHosts) add(m *member, info wrenn.HostInfo) {
	h.members = append(h.members, m)
	if !info.HasStore {
		return
	}
	if h.deletes == nil || info.StoreRounds.Oldest < h.oldest {
		h.oldest = info.StoreRounds.Oldest
	}
	if h.deletes == nil || m.id < h.deletes.id {
		h.deletes = m
	}
	h.current = max(h.current, info.StoreRounds.Current)
}

// uploadingMembers returns the hosts that are used, and which of them do not come back by
// the word of an operator: those count if they answer all the same.
func (c *core) uploadingMembers(ctx context.Context) (members []*member, gone map[wrenn.HostID]bool, err error) {
	rows, err := c.store.Hosts(ctx)
	if err != nil {
		return nil, nil, err
	}
	members, gone = c.hosts.all(), map[wrenn.HostID]bool{}
	for i := range rows {
		row := &rows[i]
		if row.Status == wrenn.HostLost || row.Status == wrenn.HostRemoved {
			gone[row.ID] = true
			continue
		}
		if !slices.ContainsFunc(members, func(m *member) bool { return m.id == row.ID }) {
			return nil, nil, wrenn.Errorf(wrenn.FailedPrecondition, "host %s may be storing something, and this control plane has no connection to it: if it does not come back, declare it lost", row.ID)
		}
	}
	return members, gone, nil
}

// collectStore deletes what nothing needs of a team, of rounds up to through, or finds out
// what that is. FailedPrecondition or Unavailable, and nothing was deleted, when it cannot be
// told what is needed.
func (c *core) collectStore(ctx context.Context, hosts *storeHosts, collection wrenn.StoreCollection) (wrenn.StoreCollected, error) {
	if err := c.findNeeded(ctx, hosts, &collection); err != nil {
		return wrenn.StoreCollected{}, err
	}
	return hosts.deletes.client.CollectStore(ctx, collection)
}

// findNeeded adds what is needed of the team. What rows name must be in the store; what
// only hosts name may have been deleted, for example with a sandbox that a returning host
// still has.
//
// A sandbox that is moved while the hosts are asked, one after the other, could have its
// keys on none of them at the moment when it is asked. So the rows are read before and
// after: the host of a row that is the same in both had the sandbox all the time.
func (c *core) findNeeded(ctx context.Context, hosts *storeHosts, collection *wrenn.StoreCollection) error {
	before, _, err := c.store.StoredOfTeam(ctx, collection.Team)
	if err != nil {
		return err
	}
	if collection.Others, err = c.hostReferences(ctx, hosts, collection.Team); err != nil {
		return err
	}
	after, builds, err := c.store.StoredOfTeam(ctx, collection.Team)
	if err != nil {
		return err
	}
	placed := map[wrenn.SandboxID]postgres.StoredSandbox{}
	for _, sb := range before {
		placed[sb.ID] = sb
	}
	collection.Records = builds
	for _, sb := range after {
		if was, known := placed[sb.ID]; known && (was.Host != sb.Host || was.Epoch != sb.Epoch) {
			return wrenn.Errorf(wrenn.Unavailable, "sandbox %s is being moved to another host", sb.ID)
		}
		add := func(to *[]string, keys ...string) {
			*to = append(*to, slices.DeleteFunc(keys, func(key string) bool { return key == "" })...)
		}
		if sb.Failed { // it can be restored from that
			add(&collection.Lost, sb.Checkpoint)
			continue
		}
		add(&collection.Records, sb.Stored, sb.Checkpoint)
		add(&collection.Others, sb.Moved)
	}
	return nil
}

// hostReferences returns the keys that the hosts refer to, of a team.
func (c *core) hostReferences(ctx context.Context, hosts *storeHosts, team wrenn.TeamID) ([]string, error) {
	var mu sync.Mutex
	var keys []string
	var unknown []wrenn.SandboxID
	g, asking := errgroup.WithContext(ctx)
	g.SetLimit(collectAsks)
	for _, m := range hosts.members {
		g.Go(func() error {
			refs, err := m.client.StoreReferences(asking, team)
			mu.Lock()
			defer mu.Unlock()
			keys, unknown = append(keys, refs.Keys...), append(unknown, refs.Unknown...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, id := range unknown {
		sb, err := c.store.Sandbox(ctx, id)
		switch {
		case wrenn.CodeOf(err) == wrenn.NotFound:
		case err != nil:
			return nil, err
		case sb.Team == team && sb.State != wrenn.Stopped:
			return nil, wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is in quarantine on its host, which cannot tell what is stored of it", id)
		}
	}
	return keys, nil
}

// StoreGarbage is what the snapshot store has and nothing needs.
type StoreGarbage struct {
	Round   uint64 // of uploads
	Through int64  // the last round of which objects may be deleted now; -1 for none
	Teams   []TeamGarbage
}

// TeamGarbage is what nothing needs of a team. With Err it is not known.
type TeamGarbage struct {
	Team wrenn.TeamID
	wrenn.StoreCollected
	Err error
}

// StoreGarbage returns what would be deleted now from the snapshot store, of one team or,
// with "", of each, and what nothing needs besides. It does not look at the age of objects.
// FailedPrecondition when a host does not answer, or no host has a store.
func (s *Operator) StoreGarbage(ctx context.Context, team wrenn.TeamID) (*StoreGarbage, error) {
	if err := s.hosts.refresh(ctx); err != nil { // a command does not run the fleet
		return nil, err
	}
	hosts, err := s.storeHosts(ctx, 0)
	if err != nil {
		return nil, err
	}
	if hosts.deletes == nil {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "no host has a snapshot store: set store.url of their agents")
	}
	teams := []wrenn.TeamID{team}
	if team == "" {
		if teams, err = s.store.Teams(ctx); err != nil {
			return nil, err
		}
	}
	through, ok := hosts.through()
	out := &StoreGarbage{Round: hosts.current, Through: int64(through)}
	if !ok {
		out.Through = postgres.NothingCollected
	}
	for _, id := range teams {
		got, err := s.collectStore(ctx, hosts, wrenn.StoreCollection{Team: id, Through: through, DryRun: true})
		if !ok { // of round 0, which has not ended
			got.YoungObjects, got.YoungBytes = got.YoungObjects+got.Objects, got.YoungBytes+got.Bytes
			got.Objects, got.Bytes, got.Listed = 0, 0, nil
		}
		out.Teams = append(out.Teams, TeamGarbage{id, got, err})
	}
	return out, nil
}
