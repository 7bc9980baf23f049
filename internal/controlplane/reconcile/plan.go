// Package reconcile brings what should be, the rows, and what is, the
// inventories of the hosts, together again: after a crash, a lost answer, a
// sandbox that ended by itself. Plan decides and is pure; Loop looks and acts.
//
// It works on levels, never on events: whatever happened, the next look sees
// what came of it. It never destroys a live sandbox whose row has not ended
// or is ending, and never one that it cannot explain.
package reconcile

import (
	"cmp"
	"slices"
	"time"

	"wrenn"
)

// Kind is what to do.
type Kind string

// The kinds. To is the row's next state; with "" the row stays as it is.
const (
	Move        Kind = "move"        // the row alone
	Destroy     Kind = "destroy"     // end the sandbox on the host, then move the row
	Acknowledge Kind = "acknowledge" // move the row, then let the host forget a sandbox that ended by itself
	Extend      Kind = "extend"      // the host has another timeout
)

// Action is one thing to do. Those of one plan do not depend on each other.
type Action struct {
	Kind   Kind
	Row    wrenn.Sandbox // as it was read: compare-and-set goes by its version
	To     wrenn.State
	Reason string // for the user
}

// Result is what to do about one host.
type Result struct {
	Actions []Action
	// Unknown are sandboxes that no row explains. They are left alone and
	// reported: a person decides.
	Unknown []wrenn.ObservedSandbox
}

// Row is a row as it was read.
type Row struct {
	wrenn.Sandbox
	// Abandoned says that nobody works on it any more, whatever its age.
	Abandoned bool
}

// late says that nobody can be at work on the row any more.
func (r *Row) late(asOf time.Time, grace time.Duration) bool {
	return r.Abandoned || asOf.Sub(r.UpdatedAt) > grace
}

// Grace is how long a row may stand between two states before nobody can be
// at work on it any more. It must be longer than the requests' own deadlines.
// Rows that are known to be abandoned do not wait for it.
type Grace struct {
	Pending  time.Duration // until a host was asked
	Starting time.Duration
	Turning  time.Duration // pausing and resuming
	Stopping time.Duration
}

// Reasons that users read. ReasonLost is also that of a request which finds it out.
const (
	reasonNeverAsked = "no host was asked to start it before the control plane stopped"
	reasonNeverCame  = "its host did not start it in time"
	reasonCut        = "the control plane stopped, or lost its database, while it started"
	ReasonLost       = "its host does not have it any more"
	reasonQuarantine = "its host found it in a state that nobody can explain and keeps it for a person to look at"
	reasonEnded      = "it ended by itself"
)

// Plan compares the rows of a host, and those of the sandboxes seen there,
// with its inventory. asOf is the time, by the clock that dates rows, before
// the inventory was taken: rows changed since are left for the next round,
// because the inventory may be older than they are.
func Plan(rows []Row, inv wrenn.Inventory, asOf time.Time, grace Grace) Result {
	var r Result
	byID := make(map[wrenn.SandboxID]*Row, len(rows))
	for i := range rows {
		byID[rows[i].ID] = &rows[i]
	}
	seen := make(map[wrenn.SandboxID]bool, len(inv.Sandboxes))
	for _, sb := range inv.Sandboxes {
		seen[sb.ID] = true
		r.present(byID[sb.ID], sb, inv.Host, asOf, grace)
	}
	for i := range rows {
		row := &rows[i]
		if !seen[row.ID] && row.Host == inv.Host && !row.State.Ended() && !row.UpdatedAt.After(asOf) {
			r.absent(row, asOf, grace)
		}
	}
	slices.SortFunc(r.Actions, func(a, b Action) int { return cmp.Or(cmp.Compare(a.Row.ID, b.Row.ID), cmp.Compare(a.Kind, b.Kind)) })
	return r
}

func (r *Result) add(kind Kind, row *Row, to wrenn.State, reason string) {
	r.Actions = append(r.Actions, Action{Kind: kind, Row: row.Sandbox, To: to, Reason: reason})
}

// absent decides about a row whose host does not have the sandbox.
func (r *Result) absent(row *Row, asOf time.Time, grace Grace) {
	switch row.State {
	case wrenn.Pending:
		if row.late(asOf, grace.Pending) {
			r.add(Move, row, wrenn.Failed, reasonNeverAsked)
		}
	case wrenn.Starting:
		if row.Abandoned {
			r.add(Move, row, wrenn.Failed, reasonCut)
		} else if row.late(asOf, grace.Starting) { // until then the request is on its way
			r.add(Move, row, wrenn.Failed, reasonNeverCame)
		}
	case wrenn.Stopping:
		r.add(Move, row, EndOf(&row.Sandbox), row.Reason)
	default:
		r.add(Move, row, wrenn.Failed, ReasonLost)
	}
}

// EndOf says how a stopping row ends: failed when it stops because something
// went wrong, which its reason says, else stopped.
func EndOf(row *wrenn.Sandbox) wrenn.State {
	if row.Reason != "" {
		return wrenn.Failed
	}
	return wrenn.Stopped
}

// present decides about a sandbox that the host has.
func (r *Result) present(row *Row, seen wrenn.ObservedSandbox, host wrenn.HostID, asOf time.Time, grace Grace) {
	switch {
	case row == nil:
		r.Unknown = append(r.Unknown, seen)
	case row.UpdatedAt.After(asOf):
	case row.Host != host:
		r.elsewhere(row, seen)
	case row.State.Ended():
		r.over(row, seen)
	case seen.State == wrenn.ObservedQuarantined:
		r.Unknown = append(r.Unknown, seen)
		r.add(Move, row, wrenn.Failed, reasonQuarantine)
	case seen.State.Ended():
		r.ended(row, seen)
	default:
		r.live(row, seen, asOf, grace)
	}
}

// elsewhere is a copy on a host that the row does not name.
func (r *Result) elsewhere(row *Row, seen wrenn.ObservedSandbox) {
	if seen.State.Ended() {
		r.add(Acknowledge, row, "", "") // this host tried, another one has it
		return
	}
	r.Unknown = append(r.Unknown, seen)
}

// over is a row that has ended: its owner wanted the sandbox gone, or it was
// taken for lost. In the second case it is somebody's data that came back.
func (r *Result) over(row *Row, seen wrenn.ObservedSandbox) {
	switch {
	case seen.State.Ended():
		r.add(Acknowledge, row, "", "")
	case row.State == wrenn.Stopped && isLive(seen.State):
		r.add(Destroy, row, "", "")
	case seen.State != wrenn.ObservedStopping:
		r.Unknown = append(r.Unknown, seen)
	}
}

func isLive(s wrenn.ObservedState) bool {
	return s == wrenn.ObservedStarting || s == wrenn.ObservedRunning || s == wrenn.ObservedPaused
}

// ended is a sandbox that ended by itself: its time was up, or it broke.
func (r *Result) ended(row *Row, seen wrenn.ObservedSandbox) {
	to, reason := wrenn.Stopped, cmp.Or(seen.Reason, reasonEnded)
	if seen.State == wrenn.ObservedFailed || !row.State.Can(wrenn.Stopped) {
		to = wrenn.Failed
	}
	if row.State == wrenn.Stopping { // why it was to stop counts, not how it did
		to, reason = EndOf(&row.Sandbox), row.Reason
	}
	r.add(Acknowledge, row, to, reason)
}

// live is a sandbox that runs or is paused, and whose row has not ended.
func (r *Result) live(row *Row, seen wrenn.ObservedSandbox, asOf time.Time, grace Grace) {
	if !isLive(seen.State) || seen.State == wrenn.ObservedStarting && row.State != wrenn.Stopping {
		return // the host is at it
	}
	paused := seen.State == wrenn.ObservedPaused
	state := row.State
	switch row.State {
	case wrenn.Stopping:
		if row.late(asOf, grace.Stopping) {
			r.add(Destroy, row, EndOf(&row.Sandbox), row.Reason)
		}
	case wrenn.Pausing, wrenn.Resuming:
		state = turned(row.State, paused, row.late(asOf, grace.Turning))
	case wrenn.Starting, wrenn.Running, wrenn.Paused:
		// Nobody asked for a turn: what is, wins. Its time was up and the host paused it, or somebody used it and the host woke it.
		state = stateOf(paused)
	}
	if state != row.State {
		r.add(Move, row, state, "")
	}
	if state == wrenn.Running && seen.Timeout != row.Timeout {
		r.add(Extend, row, "", "")
	}
}

// turned settles a row between running and paused: at once when the host has
// done it, and back when nobody can be doing it any more.
func turned(state wrenn.State, paused, late bool) wrenn.State {
	if done := (state == wrenn.Pausing) == paused; !done && !late {
		return state
	}
	return stateOf(paused)
}

func stateOf(paused bool) wrenn.State {
	if paused {
		return wrenn.Paused
	}
	return wrenn.Running
}
