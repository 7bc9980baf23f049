package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Verdict is the outcome of a check.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "ok"      // as it should be
	Warning Verdict = "warning" // a value repeats or a connection breaks, as documented in docs/fork-safety.md
	Failed  Verdict = "FAILED"  // a value repeats that must not, or something does not work
	Skipped Verdict = "skipped" // could not be checked in this guest
)

// Result is the result of a check.
type Result struct {
	Name    string  `json:"name"`
	Group   string  `json:"group"`
	Title   string  `json:"title"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	// See is the section of the documentation, and Do its advice; both only for warnings.
	See string `json:"see,omitempty"`
	Do  string `json:"do,omitempty"`
	// Values are the values that were compared, by the probes' name and by sandbox.
	Values map[string]map[string]string `json:"values,omitempty"`
}

// judgement judges one check. It leaves the result's name, group and title empty.
type judgement func(evidence) Result

// judge returns the results of all checks.
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

// mayRepeat is like differs, but repeated values are a warning with the section's advice.
func mayRepeat(s section, names ...string) judgement {
	return func(e evidence) Result { return s.advise(compare(e, names, Warning, equal)) }
}

// advise adds the section and its advice to a warning.
func (s section) advise(r Result) Result {
	if r.Verdict == Warning {
		r.See, r.Do = page+"#"+s.anchor, s.advice
	}
	return r
}

func equal(a, b string) bool { return a == b }

// compare compares the values of each pair of sandboxes; repeats is the verdict when two are the same.
func compare(e evidence, names []string, repeats Verdict, same func(a, b string) bool) Result {
	r := Result{Verdict: Good}
	found := make([]string, len(names))
	for i, name := range names {
		if failure, ok := r.add(e, name, e.ids()); !ok {
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

// add adds the values of name to the result. When a sandbox has no value, ok is
// false and failure is the result to return.
func (r *Result) add(e evidence, name string, ids []string) (failure Result, ok bool) {
	if r.Values == nil {
		r.Values = map[string]map[string]string{}
	}
	r.Values[name] = e.values(name, ids)
	for _, id := range ids {
		if _, ok := r.Values[name][id]; !ok {
			probe, _, _ := strings.Cut(name, ".")
			why := cmp.Or(e.answers[id]["error."+probe], "the probe did not report "+name)
			return Result{Verdict: Failed, Found: e.label(id) + ": " + why, Values: r.Values}, false
		}
	}
	return Result{}, true
}

// label returns how a sandbox is named in results.
func (e evidence) label(id string) string {
	if id == e.parent {
		return "the parent"
	}
	return id
}

// repetitions returns groups of sandboxes with the same value.
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

// describe describes which sandboxes have the same value.
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

// holds fails unless the values of names are "ok" in all sandboxes.
func holds(names ...string) judgement {
	return func(e evidence) Result {
		r := Result{Verdict: Good, Found: fmt.Sprintf("works in all %d", len(e.ids()))}
		for _, name := range names {
			if failure, ok := r.add(e, name, e.ids()); !ok {
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
	// clockSlack is how far a clock may be off, beyond what cannot be measured from
	// outside: docs/fork-safety.md says "some hundred" milliseconds. clockError is
	// more than a message takes on an extremely busy machine.
	clockSlack = 500 * time.Millisecond
	clockError = 5 * time.Second
	// sequenceTicks is half a second in ticks of 64 ns: the time that may pass
	// between two lines of a program on a busy machine. Two different secrets are
	// that close by chance once in 275 runs.
	sequenceTicks = 500_000_000 / 64
)

// timeIsRight fails when a clock shows a time before the fork or differs from the
// parent's clock before the fork by more than clockError. It warns when the
// difference is certainly more than clockSlack.
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
	return clock.advise(r)
}

// sequenceSecret compares TCP sequence numbers after their time part was removed.
func sequenceSecret(e evidence) Result {
	return tcp.advise(compare(e, []string{"connect.secret"}, Warning, func(a, b string) bool {
		x, errX := strconv.ParseUint(a, 10, 32)
		y, errY := strconv.ParseUint(b, 10, 32)
		distance := uint32(x) - uint32(y) // modulo 2^32
		return errX == nil && errY == nil && min(distance, -distance) < sequenceTicks
	}))
}

// heard fails unless the program in every copy got its signal, and the parent's did not.
func heard(e evidence) Result {
	r := Result{Verdict: Good, Found: fmt.Sprintf("heard in all %d copies", len(e.copies))}
	const name = "registered.heard"
	if failure, ok := r.add(e, name, e.ids()); !ok {
		return failure
	}
	for _, id := range e.copies {
		if r.Values[name][id] == r.Values[name][e.parent] {
			r.Verdict, r.Found = Failed, e.label(id)+" did not hear it"
		}
	}
	return r
}

// firstTime fails when the first time that a program read after the fork is before
// the time at which its sandbox became a copy.
func firstTime(e evidence) Result {
	const name, since = "registered.heard_at", "generation.time"
	r := Result{Verdict: Good, Found: "after the fork in all copies"}
	for _, name := range []string{name, since} {
		if failure, ok := r.add(e, name, e.copies); !ok {
			return failure
		}
	}
	for _, id := range e.copies {
		saw, err := parseTime(r.Values[name][id])
		became, err2 := time.Parse(time.RFC3339Nano, r.Values[since][id])
		switch {
		case err != nil || err2 != nil:
			r.Verdict, r.Found = Failed, e.label(id)+" reported no time"
		case saw.Before(became.Truncate(time.Microsecond)): // the probe's precision
			r.Verdict, r.Found = Failed, fmt.Sprintf("%s saw a time %s before it was a copy", e.label(id), became.Sub(saw))
		}
	}
	return r
}

// toOutside warns when the connection works only in the parent.
func toOutside(e evidence) Result {
	if !e.outside {
		return Result{Verdict: Skipped, Found: "no server was named: --outside HOST:PORT"}
	}
	const name = "plain.outside"
	r := Result{Verdict: Good, Found: "works in all"}
	if failure, ok := r.add(e, name, e.ids()); !ok {
		return failure
	}
	if said := r.Values[name][e.parent]; said != "answers" {
		r.Verdict, r.Found = Skipped, "it does not work in the parent: "+said
		return r
	}
	for _, id := range e.copies {
		if said := r.Values[name][id]; said != "answers" {
			r.Verdict, r.Found = Warning, "continues only in the parent; in a copy: "+said
		}
	}
	return outside.advise(r)
}
