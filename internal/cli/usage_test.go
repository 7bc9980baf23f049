package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/client"
)

func TestUsageTable(t *testing.T) {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	used := client.Used{Creates: 2, SandboxSeconds: 5400, VCPUSeconds: 10800, MemoryMiBSeconds: 3600 * 512}
	use := &client.Usage{
		From: day, To: day.AddDate(0, 0, 2), Step: "day", CountedFrom: day, CountedUntil: time.Date(2026, 1, 3, 12, 0, 0, 0, time.Local), Total: used,
		Steps: []client.UsedInStep{{From: day}, {From: day.AddDate(0, 0, 1), Used: used}},
	}
	var out bytes.Buffer
	printUsage(&out, use)
	want := `FROM (UTC)  CREATES  SANDBOX H  PAUSED H  VCPU H  MEMORY GIB H  DISK GIB H  VOLUME GIB H  TEMPLATE GIB H
2026-01-03  2        1.50       0.00      3.00    0.50          0.00        0.00          0.00
total       2        1.50       0.00      3.00    0.50          0.00        0.00          0.00

Counted until 2026-01-03 12:00:00.
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("the table (-want +got):\n%s", diff)
	}
}
