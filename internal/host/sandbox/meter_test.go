package sandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/envdclient"
)

func TestMeter(t *testing.T) {
	var m meter
	began := time.Unix(1_700_000_000, 0)
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	take := func(seconds, pid int, cpu time.Duration, want bool) {
		t.Helper()
		if ask := m.take(at(seconds), pid, cpu, 2); ask != want {
			t.Errorf("at %d s: asks %v, want %v", seconds, ask, want)
		}
	}
	answer := func(seconds int, used int64, err error) {
		m.answer(at(seconds), envdclient.Usage{MemoryUsed: used, MemoryTotal: 100}, err)
	}
	silent := errors.New("no answer")

	take(0, 7, 10*time.Second, true) // the first measurement has no share of CPU
	take(5, 7, 11*time.Second, false)
	answer(6, 1, nil)
	take(10, 7, 12*time.Second, true) // 1 s in 5 s of 2 CPUs
	answer(10, 2, nil)
	take(15, 7, 12*time.Second, false) // idle
	take(20, 7, 12*time.Second+askAfter, true)
	answer(20, 0, silent)
	take(22, 7, 22*time.Second, false) // more than there is, by the clock
	take(25, 7, 22*time.Second, true)
	answer(25, 0, silent)
	take(30, 7, 22*time.Second, false) // silent for twice as long
	take(35, 7, 22*time.Second, true)  // though it is idle: it has not answered
	answer(35, 3, nil)
	take(40, 8, time.Second, true) // after a resume
	answer(40, 4, nil)
	take(45, 8, time.Second, false)

	type sample struct {
		Second, Memory int64
		Percent        float64
	}
	want := []sample{{10, 1, 10}, {15, 2, 0}, {20, 2, 2.5}, {22, 2, 100}, {25, 2, 0}, {30, 2, 0}, {35, 2, 0}, {45, 4, 0}}
	var got []sample
	for _, s := range m.series.Between(time.Time{}, time.Time{}) {
		got = append(got, sample{s.At.Unix() - began.Unix(), s.MemoryUsed, s.CPUPercent})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
}
