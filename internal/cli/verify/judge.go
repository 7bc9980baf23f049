package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Verdict is how a check ended.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "ok"      // it differs where it should, it holds where it should
	Warning Verdict = "warning" // it repeats, or does not hold, and the page says so
	Failed  Verdict = "FAILED"  // it repeats where it must not, or does not hold
	Skipped Verdict = "skipped" // it could not be seen here
)

// Result is what a check found.
type Result struct {
	Name    string  `json:"name"`
	Group   string  `json:"group"`
	Title   string  `json:"title"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	// See is the section of the page that says so, and Do what to do; both of warnings alone.
	See string `json:"see,omitempty"`
	Do  string `json:"do,omitempty"`
	// Values are what was compared, by what the probes call it and by sandbox.
	Values map[string]map[string]string `json:"values,omitempty"`
}

// judgement judges one check; name, group and title of the result are left out.
type judgement func(evidence) Result

// judge judges all checks.
func judge(e evidence) []Result {
	var out []Result
	for _, c := range checks {
		result := Result{Verdict: Skipped, Found: "the guest has no " + c.needs}
		if c.needs == "" || e.has[c.needs] != "" {
			result = c.judge(e)
		}
		result.Name, result.Group, result.Title = c.name, c.group, c.title
		out = append(out, result)
	}
	return out
}

// differs fails when any two of the parent and the copies have the same value of
// one of names.
func differs(names ...string) judgement {
	return func(e evidence) Result { return compare(e, names, Failed, equal) }
}

// mayRepeat warns of it.
func mayRepeat(s section, names ...string) judgement {
	return func(e evidence) Result { return s.note(compare(e, names, Warning, equal)) }
}

// note adds where to read on to a warning.
func (s section) note(r Result) Result {
	if r.Verdict == Warning {
		r.See, r.Do = page+"#"+s.anchor, s.advice
	}
	return r
}

func equal(a, b string) bool { return a == b }

// compare compares each pair; repeats is the verdict when two are the same.
func compare(e evidence, names []string, repeats Verdict, same func(a, b string) bool) Result {
	r := Result{Verdict: Good}
	found := make([]string, len(names))
	for i, name := range names {
		if failure, ok := r.take(e, name, e.ids()); !ok {
			return failure
		}
		groups := repetitions(e.ids(), r.Values[name], same)
		if len(groups) > 0 {
			r.Verdict = repeats
		}
		found[i] = describe(groups, e)
	}
	if len(slices.Compact(slices.Clone(found))) == 1 {
		r.Found = found[0]
		return r
	}
	for i, name := range names {
		_, short, _ := strings.Cut(name, ".")
		found[i] = short + " " + found[i]
	}
	r.Found = strings.Join(found, "; ")
	return r
}

// take adds the values of name to the result. It is not ok, and what failed is
// returned, when not all have one.
func (r *Result) take(e evidence, name string, ids []string) (failure Result, ok bool) {
	if r.Values == nil {
		r.Values = map[string]map[string]string{}
	}
	r.Values[name] = e.values(name, ids)
	for _, id := range ids {
		if _, ok := r.Values[name][id]; !ok {
			probe, _, _ := strings.Cut(name, ".")
			why := cmp.Or(e.answers[id]["error."+probe], "the probe says nothing of "+name)
			return Result{Verdict: Failed, Found: e.label(id) + ": " + why, Values: r.Values}, false
		}
	}
	return Result{}, true
}

// label is a sandbox for people.
func (e evidence) label(id string) string {
	if id == e.parent {
		return "the parent"
	}
	return id
}

// repetitions returns those that have the same value, group by group.
func repetitions(ids []string, values map[string]string, same func(a, b string) bool) [][]string {
	var groups [][]string
	for _, id := range ids {
		i := slices.IndexFunc(groups, func(g []string) bool { return same(values[g[0]], values[id]) })
		if i < 0 {
			groups = append(groups, []string{id})
			continue
		}
		groups[i] = append(groups[i], id)
	}
	return slices.DeleteFunc(groups, func(g []string) bool { return len(g) < 2 })
}

// describe says who repeats.
func describe(groups [][]string, e evidence) string {
	all := len(e.ids())
	var out []string
	for _, g := range groups {
		if len(g) == all {
			return fmt.Sprintf("the same in all %d", all)
		}
		out = append(out, "the same in "+strings.Join(labels(e, g), ", "))
	}
	return cmp.Or(strings.Join(out, " and "), fmt.Sprintf("different in all %d", all))
}

func labels(e evidence, ids []string) []string {
	var out []string
	for _, id := range ids {
		out = append(out, e.label(id))
	}
	return out
}

// holds fails unless all say ok to names.
func holds(names ...string) judgement {
	return func(e evidence) Result {
		r := Result{Verdict: Good, Found: fmt.Sprintf("works in all %d", len(e.ids()))}
		for _, name := range names {
			if failure, ok := r.take(e, name, e.ids()); !ok {
				return failure
			}
			for _, id := range e.ids() {
				if value := r.Values[name][id]; value != "ok" {
					r.Verdict, r.Found = Failed, e.label(id)+": "+value
					return r
				}
			}
		}
		return r
	}
}

const (
	// clockSlack is what a clock may be off, beyond what cannot be told from
	// outside: "some hundred" milliseconds, says the page. clockError is more than
	// the way of a message takes on a machine that is busy beyond reason.
	clockSlack = 500 * time.Millisecond
	clockError = 5 * time.Second
	// sequenceTicks are the ticks of 64 ns of half a second: what may pass
	// between two lines of a program on a busy machine. Two secrets are so near
	// by chance once in 275.
	sequenceTicks = 500_000_000 / 64
)

// timeIsRight fails when a clock is in the past of the fork, or far from what
// the parent's was before it, and warns when it is certainly not the same.
func timeIsRight(e evidence) Result {
	least, most := e.before.ahead()
	r := Result{Verdict: Good, Values: map[string]map[string]string{"time": {}}}
	var off, uncertain time.Duration
	var who string
	for _, id := range e.ids() {
		now := e.clocks[id]
		r.Values["time"][id] = now.guest.UTC().Format(time.RFC3339Nano)
		if now.guest.Before(e.before.guest) {
			r.Verdict, r.Found = Failed, e.label(id)+" is in the past of the fork"
			return r
		}
		low, high := now.ahead()
		uncertain = max(uncertain, high-least, most-low)
		if behind, early := least-high, low-most; max(behind, early) > off {
			off, who = behind, e.label(id)+" is behind"
			if early > behind {
				off, who = early, e.label(id)+" is ahead"
			}
		}
	}
	r.Found = fmt.Sprintf("after the fork in all, and off by %s at most", uncertain.Round(time.Millisecond))
	if off > clockSlack {
		r.Verdict, r.Found = Warning, fmt.Sprintf("%s by %s at least", who, off.Round(time.Millisecond))
	}
	if off > clockError {
		r.Verdict = Failed
	}
	return clock.note(r)
}

// sequenceSecret compares what is left of sequence numbers without the time.
func sequenceSecret(e evidence) Result {
	return tcp.note(compare(e, []string{"connect.secret"}, Warning, func(a, b string) bool {
		x, errX := strconv.ParseUint(a, 10, 32)
		y, errY := strconv.ParseUint(b, 10, 32)
		distance := uint32(x) - uint32(y) // around
		return errX == nil && errY == nil && min(distance, -distance) < sequenceTicks
	}))
}

// heard fails unless every copy's program heard its signal, and the parent's did not.
func heard(e evidence) Result {
	r := Result{Verdict: Good, Found: fmt.Sprintf("heard in all %d copies", len(e.copies))}
	const name = "registered.heard"
	if failure, ok := r.take(e, name, e.ids()); !ok {
		return failure
	}
	for _, id := range e.copies {
		if r.Values[name][id] == r.Values[name][e.parent] {
			r.Verdict, r.Found = Failed, e.label(id)+" did not hear it"
		}
	}
	return r
}

// firstTime fails when a program saw, as the first thing, a time before that at
// which its sandbox became a copy.
func firstTime(e evidence) Result {
	const name, since = "registered.heard_at", "generation.time"
	r := Result{Verdict: Good, Found: "after the fork in all copies"}
	for _, name := range []string{name, since} {
		if failure, ok := r.take(e, name, e.copies); !ok {
			return failure
		}
	}
	for _, id := range e.copies {
		saw, err := parseTime(r.Values[name][id])
		became, err2 := time.Parse(time.RFC3339Nano, r.Values[since][id])
		switch {
		case err != nil || err2 != nil:
			r.Verdict, r.Found = Failed, e.label(id)+" tells no time"
		case saw.Before(became.Truncate(time.Microsecond)): // what the probe prints
			r.Verdict, r.Found = Failed, fmt.Sprintf("%s saw a time %s before it was a copy", e.label(id), became.Sub(saw))
		}
	}
	return r
}

// toOutside warns when the connection works in the parent alone.
func toOutside(e evidence) Result {
	if !e.outside {
		return Result{Verdict: Skipped, Found: "no server was named: --outside HOST:PORT"}
	}
	const name = "plain.outside"
	r := Result{Verdict: Good, Found: "works in all"}
	if failure, ok := r.take(e, name, e.ids()); !ok {
		return failure
	}
	if said := r.Values[name][e.parent]; said != "answers" {
		r.Verdict, r.Found = Skipped, "it does not work in the parent: "+said
		return r
	}
	for _, id := range e.copies {
		if said := r.Values[name][id]; said != "answers" {
			r.Verdict, r.Found = Warning, "goes on in the parent alone; in a copy: "+said
		}
	}
	return outside.note(r)
}
