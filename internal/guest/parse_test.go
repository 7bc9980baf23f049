package guest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/guest/settings"
)

func TestParseStat(t *testing.T) {
	const stat = "cpu  100 1 50 800 20 3 4 2 70 0\ncpu0 1 1 1 1\n"
	got, err := parseStat([]byte(stat))
	if want := (cpuTimes{total: 980, busy: 160}); err != nil || got != want {
		t.Errorf("parseStat() = %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "intr 1 2 3 4", "cpu 1 2", "cpu a b c d"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) did not fail", bad)
		}
	}
}

func TestParseMeminfo(t *testing.T) {
	got := parseMeminfo([]byte("MemTotal:       1024 kB\nHugePages_Total:       7\nCached: x kB\nnonsense\n"))
	if diff := cmp.Diff(map[string]uint64{"MemTotal": 1 << 20}, got); diff != "" {
		t.Errorf("parseMeminfo() mismatch (-want +got):\n%s", diff)
	}
}

func TestPercent(t *testing.T) {
	now := time.Unix(1000, 0)
	u := newUsage()
	u.now = func() time.Time { return now }
	for _, step := range []struct {
		after time.Duration
		cpu   cpuTimes
		want  float64
	}{
		{0, cpuTimes{total: 1000, busy: 250}, 25}, // since the start
		{time.Second, cpuTimes{total: 1100, busy: 300}, 50},
		{time.Millisecond, cpuTimes{total: 1101, busy: 301}, 50}, // too short to say
		{time.Second, cpuTimes{total: 1200, busy: 300}, 0},
		{time.Second, cpuTimes{total: 1200, busy: 300}, 0}, // no time has passed
	} {
		now = now.Add(step.after)
		if got := u.percent(step.cpu); got != step.want {
			t.Errorf("percent(%+v) = %v, want %v", step.cpu, got, step.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("cpu  100 1 50 800 20 3 4 2 70 0\n"))
	f.Add([]byte("cpu -1 9223372036854775807 1 1"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		cpu, err := parseStat(stat)
		if err != nil {
			return
		}
		u := newUsage()
		if pct := u.percent(cpu); pct < 0 || pct > 100 {
			t.Fatalf("percent(%+v) = %v", cpu, pct)
		}
	})
}

func FuzzParseMeminfo(f *testing.F) {
	f.Add([]byte("MemTotal:       1024 kB\nCached: 18446744073709551615 kB\n"))
	f.Fuzz(func(t *testing.T, meminfo []byte) {
		for name, value := range parseMeminfo(meminfo) {
			if value > 1<<63 {
				t.Fatalf("%s = %d", name, value)
			}
		}
	})
}

func FuzzParseInit(f *testing.F) {
	f.Add([]byte(`{"envVars":{"A":"1"},"defaultUser":"user","defaultWorkdir":"/","accessToken":"t","timestamp":"2026-11-24T12:00:00Z","entropy":"AAAA"}`))
	f.Add([]byte(`{"envVars":null} x`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := parseInit(bytes.NewReader(body))
		if err != nil {
			return
		}
		v := settings.Values{Token: "secret"}
		req.apply(&v)
		if v.Token != "secret" && !strings.Contains(strings.ToLower(string(body)), "token") && !bytes.Contains(body, []byte(`\`)) {
			t.Fatalf("%q changed the token to %q", body, v.Token)
		}
	})
}
