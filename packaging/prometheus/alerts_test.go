//go:build alerts

// Package prometheus_test evaluates the alerts by Prometheus' own code. No program of Wrenn
// depends on that, so it is built with modules that are not those of go.mod; see the Makefile.
package prometheus_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	promql "github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

// alertCase is what happens to a host, a sample a minute: fine for 30 minutes, then
// broken for 60, then fine again.
type alertCase struct {
	series []string
	// fires is the first minute at which the alert fires, ends that at which it does no longer.
	fires, ends int
}

// alertCases has every alert.
var alertCases = map[string]alertCase{
	"WrennControlPlaneDown":      {[]string{`up{job="wrenn-control-plane"} 1x29 0x59 1x60`}, 32, 90},
	"WrennHostAgentDown":         {[]string{`up{job="wrenn-host-agent"} 1x29 0x59 1x60`}, 32, 90},
	"WrennHostUnreachable":       {[]string{`wrenn_host_up{host="h1",instance="a"} 1x29 0x59 1x60`, `wrenn_host_up{host="h1",instance="b"} 0x149`}, 32, 90},
	"WrennSandboxesNeedOperator": {[]string{`wrenn_host_unknown_sandboxes{host="h1"} 0x29 1x59 0x60`}, 40, 90},
	"WrennStoreNotCollected":     {[]string{`wrenn_store_collection_held{instance="a"} 0x29 1x79 0x40`, `wrenn_store_collection_held{instance="b"} 0x149`}, 90, 110},
	"WrennDiskLow":               {[]string{`wrenn_disk_free_bytes 20000000000x29 19999999999x59 20000000000x60`}, 35, 90},
	"WrennMemoryNearLimit":       {[]string{`wrenn_memory_used_bytes 90x29 91x59 90x60`, `wrenn_memory_limit_bytes 100x149`}, 45, 90},
	// Rates are those of 5 and 10 minutes. More than 5 % of the requests fail from the third minute of errors until the second without;
	// more than a tenth of the creates is slow while one slow minute is in the window.
	"WrennAPIErrors":          {[]string{`wrenn_api_requests_total{instance="a",status="500"} 0x29 0+10x59 590x60`, `wrenn_api_requests_total{instance="a",status="200"} 0+100x149`}, 43, 91},
	"WrennCreatesSlow":        {[]string{`wrenn_api_request_seconds_bucket{operation="createSandbox",le="10"} 0+10x29 290x59 290+10x60`, `wrenn_api_request_seconds_bucket{operation="createSandbox",le="30"} 0+10x149`, `wrenn_api_request_seconds_bucket{operation="createSandbox",le="+Inf"} 0+10x149`}, 40, 99},
	"WrennSnapshotsNotStored": {[]string{`wrenn_snapshots_not_stored_age_seconds 3600x29 3601x59 0x60`}, 35, 90},
}

// TestAlertsFireAndResolve evaluates each alert by Prometheus' own code.
func TestAlertsFireAndResolve(t *testing.T) {
	groups, errs := rulefmt.ParseFile("wrenn.rules.yml", false)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	seen := 0
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			seen++
			t.Run(rule.Alert, func(t *testing.T) {
				c, ok := alertCases[rule.Alert]
				if !ok {
					t.Fatal("no case in alertCases")
				}
				c.check(t, rule)
			})
		}
	}
	if seen != len(alertCases) {
		t.Errorf("%d alerts, %d cases", seen, len(alertCases))
	}
}

// check compares the minutes in which the alert fires.
func (c alertCase) check(t *testing.T, rule rulefmt.Rule) {
	t.Helper()
	input := "load 1m\n"
	for _, s := range c.series {
		input += "  " + s + "\n"
	}
	storage := promqltest.LoadedStorage(t, input)
	defer storage.Close()
	expr, err := promql.ParseExpr(rule.Expr)
	if err != nil {
		t.Fatal(err)
	}
	alert := rules.NewAlertingRule(rule.Alert, expr, time.Duration(rule.For), time.Duration(rule.KeepFiringFor),
		labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations), labels.EmptyLabels(), "", true, slog.New(slog.DiscardHandler))
	query := rules.EngineQueryFunc(promqltest.NewTestEngine(t, false, 0, 100000), storage)
	const minutes = 150
	var fires, ends []int
	firing := false
	for minute := range minutes {
		at := model.TimeFromUnix(int64(minute) * 60).Time()
		if _, err := alert.Eval(t.Context(), 0, at, query, nil, 0); err != nil {
			t.Fatal(err)
		}
		now := alert.State() == rules.StateFiring
		if now && !firing {
			fires = append(fires, minute)
		} else if firing && !now {
			ends = append(ends, minute)
		}
		firing = now
	}
	if len(fires) != 1 || fires[0] != c.fires || len(ends) != 1 || ends[0] != c.ends {
		t.Errorf("fires at %v and ends at %v, want %d and %d", fires, ends, c.fires, c.ends)
	}
}
