package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/wake"
)

const (
	// probeEvery is the pause between two probes of a guest. A guest whose agent has
	// sent anything since the last one is not probed.
	probeEvery = 2 * time.Second
	// silentProbes is how many probes in a row must be missed, whatever the time.
	silentProbes = 3
	// patientFactor is how many times longer a guest may be silent whose machine gets
	// too little of the host's CPU.
	patientFactor = 4
)

// vigil decides from the outcomes of probes whether a guest is silent. It is for one
// goroutine.
type vigil struct {
	limit  time.Duration // of silence
	since  time.Time     // the last sign of life
	misses int           // probes in a row without an answer
	silent bool
}

// alive records a sign of life at that time.
func (v *vigil) alive(at time.Time) {
	v.misses, v.silent = 0, false
	if at.After(v.since) {
		v.since = at
	}
}

// missed records a probe that was not answered, and that ended now. Starved means
// that the machine could not have answered, for want of CPU.
func (v *vigil) missed(now time.Time, starved bool) {
	limit := v.limit
	if starved {
		limit *= patientFactor
	}
	v.misses++
	v.silent = v.silent || v.misses >= silentProbes && now.Sub(v.since) >= limit
}

// guestWatch notices when the guest of an instance stops answering, and when it
// answers again.
type guestWatch struct {
	*Sandbox

	inst  *instance.Instance
	vigil vigil
}

// watchGuest watches the guest of the instance until ctx ends.
func watchGuest(ctx context.Context, s *Sandbox, inst *instance.Instance) {
	w := guestWatch{Sandbox: s, inst: inst, vigil: vigil{limit: s.host.cfg.SilentAfter, since: time.Now()}}
	for wait := probeEvery; wake.Sleep(ctx, wait); {
		began := time.Now()
		w.look(ctx)
		wait = max(0, probeEvery-time.Since(began))
	}
}

// look looks once whether the guest answers.
func (w *guestWatch) look(ctx context.Context) {
	v, inst := &w.vigil, w.inst
	runs, changes := w.state.canAnswer()
	now := time.Now()
	heard := inst.Guest.Heard()
	if heard.After(v.since) {
		v.alive(heard)
	}
	switch {
	case !runs:
		v.alive(now) // nothing is expected of it
	case now.Sub(heard) < probeEvery:
	default:
		silence := w.probe(ctx)
		if stillRuns, after := w.state.canAnswer(); !stillRuns || after != changes || ctx.Err() != nil {
			return // it was stopped in between: the probe does not count
		}
		if v.silent {
			w.markSilent(ctx, silence)
			return
		}
	}
	if runs && !v.silent && v.misses == 0 {
		w.markAnswering(ctx)
	}
}

// probe probes the guest and records the outcome. It returns what does not answer.
func (w *guestWatch) probe(ctx context.Context) (silence string) {
	v, inst := &w.vigil, w.inst
	limit := v.limit / silentProbes
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began, waited := time.Now(), waitedForCPU(inst)
	err := inst.Guest.Probe(limited)
	took := time.Since(began)
	switch probe, ok := errors.AsType[*envdclient.ProbeError](err); {
	case err == nil:
		v.alive(time.Now())
	case took > 2*limit+time.Second:
		v.alive(time.Now()) // this agent did not run: the host was suspended, or is overloaded
	case ok:
		v.missed(time.Now(), waitedForCPU(inst)-waited > took/2)
		return probe.Silence()
	}
	return ""
}

// markSilent has every call to the guest fail at once, and shows why.
func (w *guestWatch) markSilent(ctx context.Context, silence string) {
	heard := w.vigil.since
	u := wrenn.Unresponsive{Since: heard.UTC().Truncate(time.Millisecond), Reason: silence}
	if !w.state.setUnresponsive(&u) {
		return
	}
	w.inst.Guest.Interrupt(u.Refusal(w.id), heard)
	w.host.news.notify()
	w.log(ctx, slog.LevelWarn, "guest does not answer", slog.Time("since", u.Since), slog.String("reason", u.Reason))
}

// markAnswering takes markSilent back.
func (w *guestWatch) markAnswering(ctx context.Context) {
	w.inst.Guest.Continue()
	if w.state.setUnresponsive(nil) {
		w.host.news.notify()
		w.log(ctx, slog.LevelInfo, "guest answers again")
	}
}

// waitedForCPU returns how long the threads of the instance's VMM together have been
// ready to run without a CPU; 0 when that is not known.
func waitedForCPU(inst *instance.Instance) (total time.Duration) {
	if inst.Record.Machine == nil {
		return 0
	}
	threads, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(inst.Record.Machine.PID), "task/*/schedstat")) // the pattern is well formed
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		if fields := strings.Fields(string(text)); len(fields) > 1 { // see sched-stats.rst: time on, time waiting for a CPU, in ns
			ns, _ := strconv.ParseInt(fields[1], 10, 64)
			total += time.Duration(ns)
		}
	}
	return total
}
