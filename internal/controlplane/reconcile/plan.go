// Package reconcile brings the desired state, the rows, and the observed state, the
// inventories of the hosts, together again: after a crash, an answer that did
// not arrive, a sandbox that ended by itself. Plan decides and is pure; Loop reads and acts.
//
// It works on states, never on events: the next round sees the result of
// whatever happened. It never destroys a live sandbox unless its row has ended or
// is stopping, and never one that no row explains; but of a paused one that another host
// has fetched from the snapshot store it removes the copy that is the same. A copy of an
// earlier epoch that runs on another host than its row's is paused, and kept.
package reconcile

import (
	"cmp"
	"slices"
	"time"

	"wrenn.dev"
)

// Kind is the kind of an action.
type Kind string

// The kinds. To is the row's next state; with "" the row stays as it is.
const (
	Move        Kind = "move"        // the row alone
	Destroy     Kind = "destroy"     // end the sandbox on the host, then move the row
	Acknowledge Kind = "acknowledge" // move the row, then let the host forget a sandbox that ended by itself
	Extend      Kind = "extend"      // set the row's timeout on the host
	SetNetwork  Kind = "network"     // set the row's network policy on the host
	SetSettings Kind = "settings"    // set the row's settings on the host
	Condition   Kind = "condition"   // show in the row whether the guest answers
	SetStored   Kind = "stored"      // show in the row where the paused sandbox is stored
	Drop        Kind = "drop"        // remove a copy of a stored sandbox that another host has, if the row is still as it was
	Supersede   Kind = "supersede"   // pause a copy of an earlier epoch, and have its host refuse all calls that name an epoch
	SetNewest   Kind = "checkpoint"  // show in the row its newest checkpoint that is stored
	SetEpoch    Kind = "epoch"       // show in the row the epoch that its host has
)

// Action is one step of a plan. The actions of a plan do not depend on each other.
type Action struct {
	Kind         Kind
	Row          wrenn.Sandbox // as it was read: compare-and-set goes by its version
	To           wrenn.State
	Reason       string                 // for the user
	Cause        wrenn.EndCause         // why it ends; "" keeps the row's
	Unresponsive *wrenn.Unresponsive    // of a Condition
	Stored       wrenn.Stored           // of a SetStored
	Newest       wrenn.StoredCheckpoint // of a SetNewest
	// Epoch is that of the sandbox on the host, which a call to the host means, and a
	// SetEpoch writes; 0 compares nothing.
	Epoch wrenn.Epoch
}

// Result is the plan for one host.
type Result struct {
	Actions []Action
	// Unknown are sandboxes that no row explains. They are not touched but
	// reported: an operator decides.
	Unknown []wrenn.ObservedSandbox
	// Again is true when a sandbox has ended, or was stored, whose row was too new to act on,
	// or does not follow its network policies and cannot be told now: the next round should
	// be soon.
	Again bool
}

// Row is a row as it was read.
type Row struct {
	wrenn.Sandbox
	// Abandoned is true if no process works on the row any more, whatever its age.
	Abandoned bool
	// SecretsTag is that of the secrets that its network policy needs.
	SecretsTag string
}

// late reports whether no process can still work on the row.
func (r *Row) late(asOf time.Time, grace time.Duration) bool {
	return r.Abandoned || asOf.Sub(r.UpdatedAt) > grace
}

// Grace is how long a row may be in transition before it counts as late. It must be
// longer than the deadlines of requests. Rows that are known to be abandoned do not
// wait for it.
type Grace struct {
	Pending           time.Duration // rows of older versions, which had no host at first
	Starting          time.Duration
	PausingOrResuming time.Duration
	Stopping          time.Duration
}

// Reasons that users read. ReasonLost is also that of a request that finds the loss.
const (
	reasonNeverAsked = "no host was asked to start it before the control plane stopped"
	reasonNeverCame  = "its host did not start it in time"
	reasonCut        = "the control plane stopped, or its database was away, while it started"
	ReasonLost       = "its host does not have it any more"
	reasonQuarantine = "its host found it in an unexplained state and keeps it for an operator to look at"
	reasonEnded      = "it ended by itself"
)

// Plan compares the rows of a host, and those of the sandboxes that it reports,
// with its inventory. asOf is a time before the inventory was read, by the clock
// that dates rows: rows changed since then wait for the next round, because the
// inventory may be older than they are.
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
	r.end(kind, row, to, reason, wrenn.CauseUnknown)
}

// end is add of an action by which the row ends, for that cause.
func (r *Result) end(kind Kind, row *Row, to wrenn.State, reason string, cause wrenn.EndCause) {
	r.Actions = append(r.Actions, Action{Kind: kind, Row: row.Sandbox, To: to, Reason: reason, Cause: cause})
}

// absent plans for a row whose host does not have the sandbox.
func (r *Result) absent(row *Row, asOf time.Time, grace Grace) {
	switch row.State {
	case wrenn.Pending:
		if row.late(asOf, grace.Pending) {
			r.end(Move, row, wrenn.Failed, reasonNeverAsked, wrenn.CauseStart)
		}
	case wrenn.Starting:
		if row.Abandoned {
			r.end(Move, row, wrenn.Failed, reasonCut, wrenn.CauseStart)
		} else if row.late(asOf, grace.Starting) { // until then the request may be on its way
			r.end(Move, row, wrenn.Failed, reasonNeverCame, wrenn.CauseStart)
		}
	case wrenn.Stopping:
		r.add(Move, row, EndOf(&row.Sandbox), row.Reason)
	case wrenn.Paused:
		if row.Stored.Key != "" {
			return // a host fetches it when it is resumed
		}
		r.end(Move, row, wrenn.Failed, ReasonLost, wrenn.CauseLost)
	default:
		r.end(Move, row, wrenn.Failed, ReasonLost, wrenn.CauseLost)
	}
}

// EndOf returns the final state of a stopping row: failed if it has a reason,
// which is what went wrong, else stopped.
func EndOf(row *wrenn.Sandbox) wrenn.State {
	if row.Reason != "" {
		return wrenn.Failed
	}
	return wrenn.Stopped
}

// present plans for a sandbox that the host has. The actions mean the epoch that was seen.
func (r *Result) present(row *Row, seen wrenn.ObservedSandbox, host wrenn.HostID, asOf time.Time, grace Grace) {
	before := len(r.Actions)
	r.compare(row, seen, host, asOf, grace)
	if seen.SupersededBy != 0 {
		return // its host refuses calls that name an epoch
	}
	for i := range r.Actions[before:] {
		r.Actions[before+i].Epoch = seen.Epoch
	}
}

func (r *Result) compare(row *Row, seen wrenn.ObservedSandbox, host wrenn.HostID, asOf time.Time, grace Grace) {
	switch {
	case row == nil:
		r.Unknown = append(r.Unknown, seen)
	case row.UpdatedAt.After(asOf):
		r.Again = r.Again || seen.State.Ended() || !row.State.Ended() && (!seen.Network.Equal(row.Network) || seen.Stored.Key != row.Stored.Key && seen.Stored.IsOf(row.Team))
	case row.Host != host:
		r.elsewhere(row, seen)
	case row.State.Ended():
		r.over(row, seen)
	case isOld(row, seen): // the host's disk is that of an earlier day
		r.outdated(row, seen)
		r.absent(row, asOf, grace)
	case seen.State == wrenn.ObservedQuarantined:
		r.Unknown = append(r.Unknown, seen)
		r.end(Move, row, wrenn.Failed, reasonQuarantine, wrenn.CauseQuarantined)
	case seen.State.Ended():
		r.ended(row, seen)
	case seen.Epoch > row.Epoch && row.Epoch != 0: // it was fetched again, and a control plane ended before it wrote that
		r.add(SetEpoch, row, "", "")
	default:
		r.live(row, seen, asOf, grace)
	}
}

// isOld reports whether a host has an earlier placement than the row names.
func isOld(row *Row, seen wrenn.ObservedSandbox) bool {
	return seen.Epoch != 0 && seen.Epoch < row.Epoch
}

// outdated plans for a copy of an earlier epoch that is not the same as the sandbox: it is
// kept for an operator, and does not run. Its host refuses calls that were under way when
// the sandbox was moved.
func (r *Result) outdated(row *Row, seen wrenn.ObservedSandbox) {
	if seen.State.Ended() {
		r.add(Acknowledge, row, "", "")
		return
	}
	r.Unknown = append(r.Unknown, seen)
	if seen.State == wrenn.ObservedRunning || seen.State == wrenn.ObservedPaused && seen.SupersededBy == 0 {
		r.add(Supersede, row, "", "")
	}
}

// elsewhere plans for a sandbox on a host that the row does not name.
func (r *Result) elsewhere(row *Row, seen wrenn.ObservedSandbox) {
	if seen.State.Ended() {
		r.add(Acknowledge, row, "", "") // this host failed to start it, another one has it
		return
	}
	if seen.State == wrenn.ObservedPaused && seen.Stored.Key != "" && seen.Stored.Key == row.MovedKey {
		r.add(Drop, row, "", "") // this host has what the row's host has fetched, and nothing else
		return
	}
	if isOld(row, seen) {
		r.outdated(row, seen)
		return
	}
	r.Unknown = append(r.Unknown, seen)
}

// over plans for a sandbox whose row has ended: its owner stopped it, or it was
// marked lost. In the second case a user's data have come back.
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

// ended plans for a sandbox that ended by itself: it timed out, or it failed.
func (r *Result) ended(row *Row, seen wrenn.ObservedSandbox) {
	to, reason, cause := wrenn.Stopped, cmp.Or(seen.Reason, reasonEnded), seen.EndCause
	if seen.State == wrenn.ObservedFailed || !row.State.Can(wrenn.Stopped) {
		to = wrenn.Failed
	}
	if row.State == wrenn.Stopping { // the reason for the stop counts, not how it ended
		to, reason, cause = EndOf(&row.Sandbox), row.Reason, wrenn.CauseUnknown
	}
	r.end(Acknowledge, row, to, reason, cause)
}

// live plans for a sandbox that runs or is paused, and whose row has not ended.
func (r *Result) live(row *Row, seen wrenn.ObservedSandbox, asOf time.Time, grace Grace) {
	if !isLive(seen.State) || seen.State == wrenn.ObservedStarting && row.State != wrenn.Stopping {
		r.Again = r.Again || !seen.Network.Equal(row.Network)
		return // the host works on it
	}
	paused := seen.State == wrenn.ObservedPaused
	state := row.State
	switch row.State {
	case wrenn.Stopping:
		if row.late(asOf, grace.Stopping) {
			r.add(Destroy, row, EndOf(&row.Sandbox), row.Reason)
		}
	case wrenn.Pausing, wrenn.Resuming:
		state = settle(row.State, paused, row.late(asOf, grace.PausingOrResuming))
	case wrenn.Starting, wrenn.Running, wrenn.Paused:
		// No request is in progress, so the observed state wins: it timed out and the host paused it, or it was used and the host woke it.
		state = stateOf(paused)
	}
	if state != row.State {
		r.add(Move, row, state, "")
	}
	if state == wrenn.Running && seen.Timeout != row.Timeout {
		r.add(Extend, row, "", "")
	}
	if seen.Settings != nil && *seen.Settings != row.Settings() {
		if state.InTransition() {
			r.Again = true
		} else {
			r.add(SetSettings, row, "", "")
		}
	}
	if !seen.Network.Equal(row.Network) || seen.SecretsTag != row.SecretsTag {
		if state.InTransition() {
			r.Again = true // a policy may have changed since the request that works on it
		} else {
			r.add(SetNetwork, row, "", "")
		}
	}
	switch {
	case state == wrenn.Paused && state == row.State:
		r.stored(row, seen.Stored)
	case seen.Stored.IsOf(row.Team): // which is shown once the row is paused
		r.Again = true
	}
	if state == row.State && !state.InTransition() {
		r.newest(row, seen.NewestStored)
	}
	if state == wrenn.Running && state == row.State && !sameCondition(seen.Unresponsive, row.Unresponsive) {
		r.Actions = append(r.Actions, Action{Kind: Condition, Row: row.Sandbox, Unresponsive: seen.Unresponsive})
	}
}

// stored plans for where a host reports that a paused sandbox is stored. A key of another
// team is ignored.
func (r *Result) stored(row *Row, seen wrenn.Stored) {
	if seen.Key != "" && !seen.IsOf(row.Team) || seen.Key == row.Stored.Key {
		return
	}
	r.Actions = append(r.Actions, Action{Kind: SetStored, Row: row.Sandbox, Stored: seen})
}

// newest plans for the newest stored checkpoint that a host reports. One of another team
// is ignored.
func (r *Result) newest(row *Row, seen *wrenn.Checkpoint) {
	var newest wrenn.StoredCheckpoint
	if seen != nil {
		newest = wrenn.StoredCheckpoint{ID: seen.ID, Stored: seen.Stored}
	}
	if newest.Stored.Key != "" && !newest.Stored.IsOf(row.Team) || newest.ID == row.Newest.ID && newest.Stored.Key == row.Newest.Stored.Key {
		return
	}
	r.Actions = append(r.Actions, Action{Kind: SetNewest, Row: row.Sandbox, Newest: newest})
}

// sameCondition reports whether both answer, or neither since the same time. The
// database keeps microseconds.
func sameCondition(a, b *wrenn.Unresponsive) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Since.Truncate(time.Microsecond).Equal(b.Since.Truncate(time.Microsecond)) && a.Reason == b.Reason
}

// settle returns the state of a row that is pausing or resuming: the new state once
// the host has reached it, and the old one when the row is late.
func settle(state wrenn.State, paused, late bool) wrenn.State {
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
