package network

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network/egress"
)

// SlotRef names a slot for Adopt; a journal keeps it as JSON.
type SlotRef struct {
	Index int `json:"index"`
	// ID is new each time a slot becomes ready, so that an old ref never
	// names the next owner's slot.
	ID string `json:"id"`
	// Owner is the name that Acquire got, for readers of the journal.
	Owner string `json:"owner"`
}

// Slot is one owner's lease on a slot, which ends with Release. Its methods are
// safe for concurrent use.
type Slot struct {
	pool   *Pool
	ref    SlotRef
	record atomic.Pointer[func(wrenn.EgressEvent)]
	// credentials are those of the header rules; nil is none.
	credentials atomic.Pointer[egress.Credentials]
	policy      atomic.Pointer[wrenn.NetworkPolicy] // that of SetPolicy; nil allows all
	releasing   cmutex.Mutex                        // one Release at a time
	released    atomic.Bool
}

func newSlot(p *Pool, ref SlotRef) *Slot { return &Slot{pool: p, ref: ref} }

// Namespace is the path of the slot's network namespace.
func (s *Slot) Namespace() string { return s.pool.cfg.namespace(s.ref.Index) }

// TAP is the name of the guest's device in Namespace. It is persistent, without
// packet information, with virtio headers and one queue (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR).
func (s *Slot) TAP() string { return TAP }

// MAC is the address that the guest's network card must have; packets from
// others are dropped.
func (s *Slot) MAC() string { return GuestMAC }

// Index is the slot's number, from 0; no two slots of a pool have the same.
func (s *Slot) Index() int { return s.ref.Index }

// Ref returns the slot's reference for Adopt. It never changes.
func (s *Slot) Ref() SlotRef { return s.ref }

var errReleased = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is no longer running")

// DialContext connects to an IPv4 address and port by tcp or udp, with a socket
// of the slot's namespace; the connection is usable everywhere. Names are not
// resolved. FailedPrecondition after Release.
//
// A guest that is not up yet does not refuse the connection but drops the first
// packet, and the kernel sends the next after a second: bound each attempt by
// ctx, and repeat it.
func (s *Slot) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if s.released.Load() {
		return nil, errReleased
	}
	conn, err := dialIn(ctx, s.Namespace(), network, address, 0)
	if err != nil {
		return nil, err
	}
	if s.released.Load() { // the next owner's guest may have answered
		conn.Close()
		return nil, errReleased
	}
	return conn, nil
}

// VolumePort is the port of ListenVolumes, that of NFS.
const VolumePort = 2049

// ListenVolumes listens at the gateway's address for the slot's guest, on a port that
// the slot's rules allow to it. The caller must close it before Release.
// FailedPrecondition after Release.
func (s *Slot) ListenVolumes(ctx context.Context) (l net.Listener, err error) {
	if s.released.Load() {
		return nil, errReleased
	}
	err = netns.Do(s.Namespace(), func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", net.JoinHostPort(GatewayAddress, strconv.Itoa(VolumePort)))
		return err
	})
	return l, err
}

// Observe gives record what the guest reaches, and what it is denied, until Release:
// the first packets of connections and of what is denied, some of each kind a second.
// Record must not block. A later call replaces record. FailedPrecondition after Release.
func (s *Slot) Observe(record func(wrenn.EgressEvent)) error {
	if s.released.Load() {
		return errReleased
	}
	s.record.Store(&record)
	return s.pool.host.observers.observe(s.ref.Index, s.Namespace(), s.observed)
}

// observed passes an event on to what Observe was last given. Of a packet that the
// policy denied it says which layer did that; the kernel does not know.
func (s *Slot) observed(e wrenn.EgressEvent) {
	if policy := s.policy.Load(); policy != nil && e.Reason == reasons[logPolicy] {
		if d := policy.Decide("", e.Address, e.Port); !d.Allowed {
			e.Reason = d.Reason("this address")
		} else if policy.Proxy != nil {
			e.Reason = "only TCP goes through the egress proxy of the sandbox's network policy"
		}
	}
	if record := s.record.Load(); record != nil {
		(*record)(e)
	}
}

// Release returns the slot to the pool; the machine in it must be gone and the
// connections of DialContext closed. When it returns nil the slot is clean and
// in the pool, or removed. Twice is allowed; it never touches the slot of a later
// owner. After an error the slot stays out of the pool; another Release, or the
// pool's Sweep, tries to remove it.
func (s *Slot) Release(ctx context.Context) error {
	if err := s.releasing.Lock(ctx); err != nil {
		return err
	}
	defer s.releasing.Unlock()
	s.released.Store(true)
	return s.pool.release(ctx, s.ref)
}
