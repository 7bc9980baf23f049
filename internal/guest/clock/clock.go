// Package clock gives a guest what a stopped or copied machine lacks: the right
// time, and randomness that no other copy has.
package clock

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tolerance is how far the guest's clock may be behind before it is set: the
	// message itself takes milliseconds.
	tolerance = 50 * time.Millisecond
	// transit is how long a message may take on a busy host. Its time was right
	// when it was sent, so the right time now is up to transit later: a clock that is
	// ahead by less is as good, and setting it back would show programs the same moment twice.
	transit = 3 * time.Second
	// reordering is how far apart messages that overtook each other can be. A time
	// that is older than that comes from a host whose clock was corrected, not from a
	// late message.
	reordering = time.Minute
	// chronyDelay is after which time a chronyd is notified. It wakes at once then, and
	// takes an emulated CPU for a seventh of the time from a restore to the end of /init.
	// Nothing waits for it, since the clock is right.
	chronyDelay = time.Second
)

// Machine is the kernel. Tests and agents outside a guest have other ones.
type Machine interface {
	Now() time.Time
	SetTime(time.Time) error
	// AddEntropy credits seed, which must be secret, to the kernel's random number
	// generator and makes it reseed at once.
	AddEntropy(seed []byte) error
}

// Clock follows the host's time. It is safe for concurrent use.
type Clock struct {
	machine Machine

	mu     sync.Mutex // guards latest; held while the time is set
	latest time.Time  // the last time from the host that was accepted
}

// New returns a clock for m.
func New(m Machine) *Clock { return &Clock{machine: m} }

// Follow sets the machine's time to the host's when it is more than 50 ms behind
// or 3 s ahead, and returns by how much it was moved. A message that a later one
// has overtaken is ignored.
func (c *Clock) Follow(host time.Time) (moved time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if late := c.latest.Sub(host); late > 0 && late < reordering {
		return 0, nil
	}
	c.latest = host
	off := host.Sub(c.machine.Now())
	if off <= tolerance && off >= -transit {
		return 0, nil
	}
	if err := c.machine.SetTime(host); err != nil {
		return 0, fmt.Errorf("set the clock: %w", err)
	}
	return off, nil
}

// AddEntropy passes seed to the machine, unless it is empty.
func (c *Clock) AddEntropy(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	if err := c.machine.AddEntropy(seed); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	return nil
}

// Kernel is the machine that the program runs on. It needs CAP_SYS_TIME and CAP_SYS_ADMIN.
type Kernel struct{}

// Now is the wall clock.
func (Kernel) Now() time.Time { return time.Now().Round(0) } // without the monotonic reading, which a restore stops

// SetTime steps the wall clock (clock_settime(2)), and has a chronyd look soon.
func (Kernel) SetTime(t time.Time) error {
	spec := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &spec); err != nil {
		return err
	}
	time.AfterFunc(chronyDelay, func() {
		_ = notifyChrony(chronySocket, ownSocket) // many guests have none; the clock is right all the same
	})
	return nil
}
