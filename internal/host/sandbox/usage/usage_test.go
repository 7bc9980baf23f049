package usage

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func at(seconds int64) time.Time { return time.Unix(1_700_000_000+seconds, 0).UTC() }

func series(n int) *Series {
	s := &Series{}
	for i := range n {
		s.Add(wrenn.MetricsSample{At: at(5 * int64(i)), CPUs: 1, MemoryUsed: int64(i)})
	}
	return s
}

func TestBetween(t *testing.T) {
	s := series(10)
	for _, tc := range []struct {
		from, to time.Time
		want     []int64
	}{
		{at(40), time.Time{}, []int64{8, 9}},
		{time.Time{}, at(5), []int64{0, 1}},
		{at(6), at(14), []int64{2}},
		{at(5), at(10), []int64{1, 2}},
		{at(6), at(9), nil},
		{at(46), time.Time{}, nil},
		{time.Time{}, at(-1), nil},
		{at(10), at(5), nil},
	} {
		var got []int64
		for _, m := range s.Between(tc.from, tc.to) {
			got = append(got, m.MemoryUsed)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%v to %v (-want +got):\n%s", tc.from, tc.to, diff)
		}
	}
	s.Add(wrenn.MetricsSample{At: at(1)}) // the clock was set back
	if n := len(s.Between(time.Time{}, time.Time{})); n != 10 {
		t.Errorf("%d samples", n)
	}
}

// A month of samples is bounded, covers the month, and has the last half hour in full.
func TestSeriesIsBounded(t *testing.T) {
	const month = 30 * 24 * 3600 / 5
	s := series(month)
	all := s.Between(time.Time{}, time.Time{})
	if len(all) > maxSamples || len(all) < maxSamples/2 {
		t.Errorf("%d samples of %d", len(all), month)
	}
	if all[0].MemoryUsed != 0 || all[len(all)-1].MemoryUsed != month-1 {
		t.Errorf("from %d to %d", all[0].MemoryUsed, all[len(all)-1].MemoryUsed)
	}
	if recent := s.Between(at(5*(month-360)), time.Time{}); len(recent) != 360 {
		t.Errorf("%d samples of the last half hour, want 360", len(recent))
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.json")
	s, loaded := series(3), &Series{}
	testkit.Must(t, loaded.Load(path)) // none yet
	testkit.Must(t, s.Save(path))
	testkit.Must(t, loaded.Load(path))
	if diff := cmp.Diff(s.Between(time.Time{}, time.Time{}), loaded.Between(time.Time{}, time.Time{})); diff != "" {
		t.Error(diff)
	}
	testkit.Must(t, os.WriteFile(path, []byte("{"), 0o600))
	if err := loaded.Load(path); err == nil {
		t.Error("half a file is no error")
	}
}

func TestCPUTime(t *testing.T) {
	got, err := parseCPUTime([]byte("42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1"))
	if err != nil || got != 2*time.Second {
		t.Errorf("parseCPUTime() = %v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 2", "42 (a) S 1 2 3 4 5 6 7 8 9 10 x 50"} {
		if _, err := parseCPUTime([]byte(bad)); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
	if own, err := CPUTime(os.Getpid()); err != nil || own < 0 {
		t.Errorf("CPUTime(own) = %v, %v", own, err)
	}
}

// BenchmarkCPUTime is what a sandbox costs that does nothing: once in MetricsEvery.
func BenchmarkCPUTime(b *testing.B) {
	for b.Loop() {
		if _, err := CPUTime(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}
