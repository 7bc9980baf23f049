package sandbox

import (
	"fmt"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/network/egress"
)

const (
	// retryAfter is the pause before what failed is tried again.
	retryAfter = 10 * time.Second
	// pauseAgain is the time before a sandbox that could not be paused for lack
	// of use is tried again: it takes much, and a full disk stays full for a while.
	pauseAgain = time.Minute
)

// state is what changes in the life of a sandbox and is not in its journal. It is
// safe for concurrent use; it changes without the operation lock only by use.
type state struct {
	newVersion func() uint64 // see wrenn.ObservedSandbox
	notify     func()        // called when there may be something due
	// refused is called, with mu held, when a status may not follow the present one.
	refused func(from, to Status)

	mu       sync.Mutex // guards what follows
	status   Status
	reason   string              // why it is stopped, failed or quarantined, or does not start yet
	cause    wrenn.EndCause      // the same for programs
	silent   *wrenn.Unresponsive // while it runs; what it points to never changes
	still    bool                // its vCPUs are stopped although it runs
	stops    uint64              // how often they were stopped and started
	version  uint64
	created  time.Time
	active   time.Time // when it was last used
	timeout  time.Duration
	settings wrenn.Settings
	network  wrenn.NetworkPolicy // that the sandbox follows
	// secrets and authority are for its header rules.
	secrets   wrenn.SecretValues
	authority *egress.Authority
	// absolute has the sandbox end at ends, also while it is used; else it ends
	// when it was not used for the timeout.
	absolute bool
	ends     time.Time
	uses     int       // operations of callers in flight
	retry    time.Time // when to try again to end or remove what could not be; zero when nothing is left
	stalled  time.Time // when to try again to let a machine run that stands still; zero when none does
	patient  time.Time // the sandbox is not ended for lack of use before that
}

func newState(spec *wrenn.SandboxSpec, newVersion func() uint64, notify func(), refused func(from, to Status)) state {
	now := time.Now()
	return state{
		newVersion: newVersion, notify: notify, refused: refused,
		status: StatusStarting, created: now, active: now, timeout: spec.Timeout, absolute: spec.Absolute, ends: now.Add(spec.Timeout), network: spec.Network, settings: spec.Settings(), version: newVersion(),
	}
}

// following returns the settings that the sandbox follows.
func (s *state) following() wrenn.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

// follow changes the settings.
func (s *state) follow(settings wrenn.Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings, s.version = settings, s.newVersion()
	s.notify()
}

// fill puts the state into info.
func (s *state) fill(info *Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info.Status, info.State, info.Reason = s.status, observed[s.status], s.reason
	info.Timeout, info.CreatedAt, info.LastActiveAt, info.Version = s.timeout, s.created, s.active, s.version
	info.Network, info.SecretsTag = s.network, s.secrets.Tag
	info.Settings = new(s.settings)
	info.OnTimeout, info.AutoResume = s.settings.OnTimeout, s.settings.AutoResume
	info.EndCause, info.Unresponsive = s.cause, s.silent
	if s.uses > 0 {
		info.LastActiveAt = time.Now()
	}
}

// set changes the status.
func (s *state) set(status Status, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(status, reason, "")
	s.active = time.Now()
}

// conclude sets how the sandbox has ended.
func (s *state) conclude(v Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(v.Status, v.Reason, v.Cause)
	s.active = time.Now()
}

// explain changes the reason alone.
func (s *state) explain(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reason = reason
	s.changed()
}

// arrive is set at the end of an operation that succeeded.
func (s *state) arrive(status Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(status, "", "")
	s.active, s.patient = time.Now(), time.Time{}
}

// reasonRefused is shown when the agent itself made a mistake with a sandbox.
const reasonRefused = "internal error of the host agent: destroy the sandbox; the agent's log has the details for the operator"

// change changes the status alone. What may follow a status is this package's own
// business, so a status that may not follow is a mistake in it. That costs this
// sandbox alone: it has failed, unless it has ended, and the others live on. The
// caller holds mu.
func (s *state) change(status Status, reason string, cause wrenn.EndCause) {
	if !s.status.can(status) {
		s.refused(s.status, status)
		if s.status.ended() {
			return
		}
		status, reason, cause = StatusFailed, reasonRefused, wrenn.CauseInternal
	}
	if status != StatusRunning {
		s.silent = nil // it is not expected to answer
	}
	s.status, s.reason, s.cause = status, reason, cause
	s.changed()
}

// touchVersion counts a change of what is not in the state.
func (s *state) touchVersion() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed()
}

// changed counts a change. The caller holds mu.
func (s *state) changed() {
	s.version = s.newVersion()
	s.notify()
}

// setCreated sets when the sandbox was created, as its journal says.
func (s *state) setCreated(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = t
}

// setTimeout sets the timeout, from now on, and when that ends.
func (s *state) setTimeout(timeout time.Duration, ends time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timeout, s.ends, s.active = timeout, ends, time.Now()
	s.changed()
}

// setEnd sets when an absolute timeout ends, as the journal says.
func (s *state) setEnd(ends time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = ends
}

// beginLife is for a sandbox that is about to run: its timeout begins, unless it
// ran until now. It returns when an absolute timeout ends.
func (s *state) beginLife() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status != StatusRestoring {
		s.ends = time.Now().Add(s.timeout)
	}
	return s.ends
}

// setNetwork sets the network policy that the sandbox follows, and what its header
// rules need.
func (s *state) setNetwork(policy wrenn.NetworkPolicy, secrets wrenn.SecretValues, authority *egress.Authority) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.network, s.secrets, s.authority = policy, secrets, authority
	s.changed()
}

// forHeaders returns what the header rules of the sandbox and of its copies need.
func (s *state) forHeaders() (wrenn.SecretValues, *egress.Authority) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets, s.authority
}

// touch records that the sandbox was used now.
func (s *state) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active = time.Now()
}

// setStill records whether the vCPUs are stopped, or may be.
func (s *state) setStill(still bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.still = still
	s.stops++
}

// canAnswer reports whether the guest should answer now. When stops is the same
// after another call, it should have answered all the time between them.
func (s *state) canAnswer() (runs bool, stops uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status == StatusRunning && !s.still, s.stops
}

// setUnresponsive shows that the guest of a running sandbox does not answer, or
// with nil that it does, and reports whether that is a change.
func (s *state) setUnresponsive(u *wrenn.Unresponsive) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (u == nil) == (s.silent == nil) || s.status != StatusRunning {
		return false
	}
	s.silent = u
	s.changed()
	return true
}

// use begins a use, and reports whether the sandbox runs and answers, which it needs.
func (s *state) use() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status != StatusRunning || s.silent != nil {
		return false
	}
	s.uses++
	s.active = time.Now()
	return true
}

// unuse ends a use.
func (s *state) unuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses--
	s.active = time.Now()
	if s.uses == 0 {
		s.notify()
	}
}

// retryLater has Run try again to end or remove what could not be.
func (s *state) retryLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retry = time.Now().Add(retryAfter)
	s.notify()
}

// clearRetry is for when nothing is left to try again.
func (s *state) clearRetry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retry = time.Time{}
}

// setStalled has Run try again to let the machine run, or not any more.
func (s *state) setStalled(stalled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = time.Time{}
	if stalled {
		s.stalled = time.Now().Add(retryAfter)
		s.notify()
	}
}

// due is what Run has to do about a sandbox.
type due int

const (
	dueNothing due = iota
	dueStop
	duePause
	dueEnding // again
	dueOther  // the other instance is to be removed, again
	dueRun    // its machine is to run, again
)

// dueAt returns when Run has to do something about the sandbox, if nothing
// happens before.
func (s *state) dueAt() (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what, at := s.next()
	return at, what != dueNothing
}

// next returns what is to be done first, and when. The clock of a paused sandbox
// stands still: its user means to come back. The caller holds mu.
func (s *state) next() (what due, at time.Time) {
	running := s.status == StatusRunning
	switch {
	case !s.retry.IsZero() && s.status == StatusStopping:
		what, at = dueEnding, s.retry
	case !s.retry.IsZero():
		what, at = dueOther, s.retry
	case running && s.timeout > 0 && s.absolute:
		what, at = dueStop, later(s.ends, s.patient)
	case running && s.timeout > 0 && s.uses == 0:
		what, at = dueStop, later(s.active.Add(s.timeout), s.patient)
	}
	if running && !s.stalled.IsZero() && (what == dueNothing || s.stalled.Before(at)) {
		return dueRun, s.stalled
	}
	return what, at
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// claimDue returns what is due. It marks a sandbox whose time is up as stopping,
// or as pausing if it pauses then, in one step with the look at the clock, so that
// no use begins in between.
func (s *state) claimDue(pauses bool) (what due, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what, at := s.next()
	switch {
	case what == dueNothing || time.Until(at) > 0:
		return dueNothing, ""
	case what != dueStop:
		return what, ""
	case pauses:
		s.change(StatusPausing, "", "")
		s.patient = time.Now().Add(pauseAgain) // in case it fails
		return duePause, ""
	default:
		s.change(StatusStopping, "", wrenn.CauseTimeout)
		if s.absolute {
			return dueStop, fmt.Sprintf("its timeout of %s ended", s.timeout)
		}
		return dueStop, fmt.Sprintf("not used for %s", s.timeout)
	}
}
