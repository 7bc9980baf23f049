// Package scheduler picks hosts for sandboxes. It is pure: it decides by what the
// caller knows of the hosts, their last answers above all. A host that is full since
// then refuses the sandbox, and the caller picks again without it.
//
// A host that cannot have the sandbox is left out for a Reason. Of the others the one
// with the lowest cost is picked, see Cost.
package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"wrenn.dev"
)

// Host is a host as it is known.
type Host struct {
	ID        wrenn.HostID
	Status    wrenn.HostStatus // "" is active
	Reachable bool             // it answered the last ping
	Zone      string
	Labels    map[string]string
	HasStore  bool
	// FetchesTemplates: it makes templates from what is stored of them.
	FetchesTemplates bool
	Platform         wrenn.Platform
	Capacity         wrenn.Capacity // as it answered last
	// Sent to the host since that answer.
	PendingSandboxes int
	PendingMemoryMB  int64
	PendingDiskMB    int64
	// RefusedMB is the memory of the smallest sandbox that it has refused since then
	// because it was full; 0 is none.
	RefusedMB int
}

// Request is a sandbox that needs a host. Zero fields demand nothing.
type Request struct {
	MemoryMB int
	DiskMB   int // the size of its disk, however full it will be
	// Requires are labels that the host must have; ZoneLabel is its zone.
	Requires map[string]string
	// Only is the host that has what the sandbox needs and no other can get: its
	// template, or a volume.
	Only wrenn.HostID
	// Except are hosts that are not asked (again).
	Except map[wrenn.HostID]bool
	// Snapshot is set for a sandbox that is restored from a snapshot which was made
	// on a host with that platform.
	Snapshot *wrenn.Platform
	// Template is set for a sandbox of a template that is stored.
	Template *Template
	// Origin has the snapshot. It is preferred, and needs no store.
	Origin wrenn.HostID
	// Stays keeps a sandbox that Origin has already on it while that host is cordoned.
	Stays bool
	// Team is how many sandboxes of the team are on each host.
	Team map[wrenn.HostID]int
}

// Template is a template that hosts can fetch.
type Template struct {
	Platform wrenn.Platform        // of the host that built it
	On       map[wrenn.HostID]bool // the hosts that have it: they are preferred
}

// ZoneLabel is the name by which Requires asks for a zone.
const ZoneLabel = "zone"

// Reason is why a host cannot have a sandbox; Fits is that it can.
type Reason string

// The reasons, in the order in which they are looked at.
const (
	Fits        Reason = ""
	NotWanted   Reason = "is lost or removed"
	Elsewhere   Reason = "does not have the template or a volume of the sandbox"
	Unreachable Reason = "does not answer"
	Cordoned    Reason = "takes no new sandboxes: an operator has cordoned it"
	Draining    Reason = "is being drained"
	Refused     Reason = "has refused it just now"
	Label       Reason = "does not have the labels that the sandbox requires"
	Driver      Reason = "has another virtual machine monitor than the snapshot needs"
	Processor   Reason = "has another processor than the snapshot needs"
	NoStore     Reason = "has no snapshot store to fetch the sandbox from"
	NoTemplate  Reason = "does not have the template, and no snapshot store to fetch it from"
	Sandboxes   Reason = "has as many sandboxes as it may have"
	Memory      Reason = "has not enough free memory"
	Disks       Reason = "has no room for another disk"
	DiskFloor   Reason = "has hardly any free disk space"
)

// full reports whether the host could have the sandbox at another time.
func (r Reason) full() bool {
	return r == Sandboxes || r == Memory || r == Disks || r == DiskFloor || r == Refused
}

// passes reports whether the reason may go away although the request stays the same.
func (r Reason) passes() bool {
	return r == Unreachable || r == Cordoned || r == Draining || r == Elsewhere || r == NoStore || r == NoTemplate
}

// Check returns why the host cannot have the sandbox, Fits if it can.
func (r *Request) Check(h *Host) Reason {
	switch {
	case h.Status == wrenn.HostLost || h.Status == wrenn.HostRemoved:
		return NotWanted
	case r.Only != "" && r.Only != h.ID:
		return Elsewhere
	case !h.Reachable:
		return Unreachable
	case r.stays(h): // it was admitted there once
	case h.Status == wrenn.HostCordoned:
		return Cordoned
	case h.Status == wrenn.HostDraining:
		return Draining
	}
	if r.Except[h.ID] || h.RefusedMB > 0 && r.MemoryMB >= h.RefusedMB {
		return Refused
	}
	if !r.labeled(h) && !r.stays(h) {
		return Label
	}
	if reason := r.restores(h); reason != Fits {
		return reason
	}
	if reason := r.Template.fits(h); reason != Fits {
		return reason
	}
	return r.room(h)
}

func (r *Request) stays(h *Host) bool { return r.Stays && r.Origin == h.ID }

func (r *Request) labeled(h *Host) bool {
	for name, want := range r.Requires {
		have, ok := h.Labels[name]
		if name == ZoneLabel {
			have, ok = h.Zone, h.Zone != ""
		}
		if !ok || have != want {
			return false
		}
	}
	return true
}

// restores returns why the host cannot restore the snapshot of the request.
func (r *Request) restores(h *Host) Reason {
	if r.Snapshot == nil || r.Origin == h.ID {
		return Fits
	}
	if !h.HasStore {
		return NoStore
	}
	return compatible(*r.Snapshot, h.Platform)
}

// fits returns why the host cannot have the template, nil for none. One that has it has
// fetched or built it, and so checked it.
func (t *Template) fits(h *Host) Reason {
	switch {
	case t == nil || t.On[h.ID]:
		return Fits
	case !h.FetchesTemplates:
		return NoTemplate
	}
	return compatible(t.Platform, h.Platform)
}

// compatible returns why a host of a platform cannot restore a snapshot of another.
// What is not known of either does not count: the host then refuses by itself. So it
// does for Firecracker's versions, of which newer ones load the snapshots of some
// older ones; QEMU's must be equal.
func compatible(snapshot, host wrenn.Platform) Reason {
	differ := func(a, b string) bool { return a != "" && b != "" && a != b }
	switch {
	case differ(snapshot.Driver, host.Driver):
		return Driver
	case strings.HasPrefix(snapshot.Driver, "qemu") && differ(snapshot.Version, host.Version):
		return Driver
	case differ(snapshot.Processor, host.Processor):
		return Processor
	}
	return Fits
}

const (
	// floorMiB and floorShare are how much of a host's disk stays free for what its
	// sandboxes write: the smaller of both.
	floorMiB   = 2 << 10
	floorShare = 0.15
)

// room returns what the host has too little of.
func (r *Request) room(h *Host) Reason {
	c := &h.Capacity
	switch {
	case c.Sandboxes != 0 && c.SandboxesUsed+h.PendingSandboxes >= c.Sandboxes && r.Origin != h.ID: // a paused one counts already
		return Sandboxes
	case c.MemoryMiB != 0 && c.MemoryMiBUsed+h.PendingMemoryMB+int64(r.MemoryMB) > c.MemoryMiB:
		return Memory
	case c.DisksMiB != 0 && c.DisksMiBUsed+h.PendingDiskMB+int64(r.DiskMB) > c.DisksMiB && r.Origin != h.ID:
		return Disks
	case c.DiskMiB != 0 && float64(c.DiskMiBFree) < min(floorMiB, floorShare*float64(c.DiskMiB)):
		return DiskFloor
	}
	return Fits
}

// Costs, in shares of a host's memory: a host that is preferred for one may be so much
// fuller than another.
const (
	// originGain is larger than all costs: fetching costs more than a fuller host.
	originGain = 4
	// templateGain is for a host that does not fetch the template, of some 100 MiB. It is
	// less than a whole memory, so that a template whose host is full is fetched by another.
	templateGain = 0.6
	// zoneCost is of a zone that has all sandboxes of the team, which would fail together.
	zoneCost = 0.3
	// teamCost is of a host that has all sandboxes of the team.
	teamCost = 0.2
	// numberCost is of a host with the most sandboxes that it may have.
	numberCost = 0.01
)

// Cost is what speaks against a host that fits.
type Cost struct {
	Memory float64 // the share of its memory that is used, with the sandbox
	Number float64 // the share of its sandboxes
	Zone   float64 // the share of the team's sandboxes that are in its zone; 0 without zones
	Team   float64 // the share of the team's sandboxes that are on it
	Origin bool    // it has the snapshot
	// Template: it has the template, which others fetch.
	Template bool
}

// Sum is the cost as one number; the lowest wins.
func (c Cost) Sum() float64 {
	sum := c.Memory + numberCost*c.Number + zoneCost*c.Zone + teamCost*c.Team
	if c.Origin {
		sum -= originGain
	}
	if c.Template {
		sum -= templateGain
	}
	return sum
}

// String says in a few words what the cost consists of.
func (c Cost) String() string {
	var parts []string
	if c.Origin {
		parts = append(parts, "has the sandbox")
	}
	if c.Template {
		parts = append(parts, "has the template")
	}
	for _, part := range []struct {
		share float64
		of    string
	}{{c.Memory, "of its memory used"}, {c.Zone, "of the team's sandboxes in its zone"}, {c.Team, "of the team's sandboxes on it"}} {
		if part.share > 0 {
			parts = append(parts, fmt.Sprintf("%.0f %% %s", 100*part.share, part.of))
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "no limits")
}

// spread is where the sandboxes of a team are.
type spread struct {
	total int
	zones map[string]int
}

func (r *Request) spread(hosts []Host) spread {
	s := spread{zones: map[string]int{}}
	if len(r.Team) == 0 {
		return s
	}
	for i := range hosts {
		n := r.Team[hosts[i].ID]
		s.total += n
		s.zones[hosts[i].Zone] += n
	}
	return s
}

// cost returns what speaks against a host.
func (r *Request) cost(h *Host, s *spread) Cost {
	c := Cost{Origin: r.Origin == h.ID, Template: r.Template != nil && r.Template.On[h.ID]}
	if of := h.Capacity.MemoryMiB; of != 0 {
		c.Memory = float64(h.Capacity.MemoryMiBUsed+h.PendingMemoryMB+int64(r.MemoryMB)) / float64(of)
	}
	if of := h.Capacity.Sandboxes; of != 0 {
		c.Number = float64(h.Capacity.SandboxesUsed+h.PendingSandboxes) / float64(of)
	}
	if s.total > 0 {
		c.Team = float64(r.Team[h.ID]) / float64(s.total)
		if h.Zone != "" {
			c.Zone = float64(s.zones[h.Zone]) / float64(s.total)
		}
	}
	return c
}

// Picked is the host that was picked.
type Picked struct {
	Host wrenn.HostID
	Cost Cost
	// Fit is how many hosts fit, of the Hosts that there are.
	Fit, Hosts int
}

// String says why it was picked, for the events of the sandbox.
func (p Picked) String() string {
	return fmt.Sprintf("best of %d hosts that fit, of %d: %s", p.Fit, p.Hosts, p.Cost)
}

// Pick returns the host with the lowest cost among those that fit, the smallest id of
// several. The error has the counts by reason: Exhausted when a host has too little of
// something, Unavailable when there may be a host later, and FailedPrecondition when no
// host is as the request demands.
func Pick(hosts []Host, r *Request) (Picked, error) {
	s := r.spread(hosts)
	out := Picked{Hosts: len(hosts)}
	var best float64
	var why map[Reason]int
	for i := range hosts {
		h := &hosts[i]
		if reason := r.Check(h); reason != Fits {
			if out.Fit == 0 {
				why = count(why, reason)
			}
			continue
		}
		cost := r.cost(h, &s)
		sum := cost.Sum()
		if out.Fit++; out.Fit == 1 || sum < best || sum == best && h.ID < out.Host {
			out.Host, out.Cost, best = h.ID, cost, sum
		}
	}
	if out.Fit == 0 {
		return out, r.noneError(len(hosts), why)
	}
	return out, nil
}

func count(why map[Reason]int, reason Reason) map[Reason]int {
	if why == nil {
		why = map[Reason]int{}
	}
	why[reason]++
	return why
}

// noneError is the error of a request that no host fits; why has the hosts by reason.
func (r *Request) noneError(hosts int, why map[Reason]int) error {
	code, advice := wrenn.FailedPrecondition, ""
	for reason := range why {
		switch {
		case reason.full():
			code, advice = wrenn.Exhausted, "; delete some, or ask for less"
		case reason.passes() && code != wrenn.Exhausted:
			code, advice = wrenn.Unavailable, "; try again in a moment"
		}
	}
	if why[Unreachable] == hosts {
		return wrenn.Errorf(wrenn.Unavailable, "no host can be reached; try again in a moment")
	}
	var parts []string
	for _, reason := range order {
		if n := why[reason]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, reason.of(n)))
		}
	}
	return wrenn.Errorf(code, "no host fits %s: of %d, %s%s", r, hosts, strings.Join(parts, ", "), advice)
}

// order is that of Check.
var order = []Reason{
	NotWanted, Elsewhere, Unreachable, Cordoned, Draining, Refused, Label, Driver, Processor, NoStore, NoTemplate, Sandboxes, Memory, Disks, DiskFloor,
}

// of returns the reason for n hosts.
func (r Reason) of(n int) string {
	if n == 1 {
		return string(r)
	}
	text := string(r)
	for _, form := range [][2]string{{"is ", "are "}, {"does ", "do "}, {"has ", "have "}, {"takes ", "take "}} {
		if rest, ok := strings.CutPrefix(text, form[0]); ok {
			text = form[1] + rest
			break
		}
	}
	return strings.NewReplacer("cordoned it", "cordoned them", "as it may", "as they may").Replace(text)
}

// String says what is wanted.
func (r *Request) String() string {
	text := fmt.Sprintf("a sandbox with %d MB of memory and a disk of %d MB", r.MemoryMB, r.DiskMB)
	var requires []string
	for name, want := range r.Requires {
		requires = append(requires, name+"="+want)
	}
	if len(requires) > 0 {
		slices.Sort(requires)
		text += " that requires " + strings.Join(requires, ", ")
	}
	return text
}

// Verdict is what is to be said of one host.
type Verdict struct {
	Host   wrenn.HostID
	Reason Reason // Fits if it can have the sandbox
	Detail string // for people
	Cost   Cost   // of one that fits
}

// Explain returns a verdict on each host: those that fit first, the best of all at the
// head, then the others by id.
func Explain(hosts []Host, r *Request) []Verdict {
	s := r.spread(hosts)
	out := make([]Verdict, len(hosts))
	for i := range hosts {
		h := &hosts[i]
		v := Verdict{Host: h.ID, Reason: r.Check(h)}
		if v.Reason == Fits {
			v.Cost = r.cost(h, &s)
		}
		v.Detail = r.detail(h, v)
		out[i] = v
	}
	slices.SortFunc(out, func(a, b Verdict) int {
		fits := func(v Verdict) int { return cmp.Compare(len(v.Reason), 0) }
		return cmp.Or(cmp.Compare(fits(a), fits(b)), cmp.Compare(a.Cost.Sum(), b.Cost.Sum()), cmp.Compare(a.Host, b.Host))
	})
	return out
}

func (r *Request) detail(h *Host, v Verdict) string {
	c := &h.Capacity
	switch v.Reason {
	case Fits:
		return v.Cost.String()
	case Memory:
		return fmt.Sprintf("%s: %d of %d MB are free, %d MB are needed", v.Reason, max(0, c.MemoryMiB-c.MemoryMiBUsed-h.PendingMemoryMB), c.MemoryMiB, r.MemoryMB)
	case Sandboxes:
		return fmt.Sprintf("%s: %d", v.Reason, c.Sandboxes)
	case Disks:
		return fmt.Sprintf("%s: %d of %d MB are promised, %d MB are needed", v.Reason, c.DisksMiBUsed+h.PendingDiskMB, c.DisksMiB, r.DiskMB)
	case DiskFloor:
		return fmt.Sprintf("%s: %d of %d MB", v.Reason, c.DiskMiBFree, c.DiskMiB)
	case Driver, Processor:
		return fmt.Sprintf("%s: %s, not %s", v.Reason, h.Platform, r.platform())
	}
	return string(v.Reason)
}

// platform returns that of the snapshot that the sandbox is restored from.
func (r *Request) platform() wrenn.Platform {
	switch {
	case r.Snapshot != nil:
		return *r.Snapshot
	case r.Template != nil:
		return r.Template.Platform
	}
	return wrenn.Platform{}
}

// MostDisk returns the host with the most free disk among those that answer and take new
// sandboxes, the smallest id of several. It is Unavailable without any.
func MostDisk(hosts []Host) (wrenn.HostID, error) {
	var best *Host
	for i := range hosts {
		h := &hosts[i]
		if !h.Reachable || h.Status != "" && h.Status != wrenn.HostActive {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(best.Capacity.DiskMiBFree, h.Capacity.DiskMiBFree), cmp.Compare(h.ID, best.ID)) < 0 {
			best = h
		}
	}
	if best == nil {
		return "", wrenn.Errorf(wrenn.Unavailable, "no host can be reached; try again in a moment")
	}
	return best.ID, nil
}
