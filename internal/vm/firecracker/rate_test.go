package firecracker

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/vm"
)

func TestRateOfANewDisk(t *testing.T) {
	disk := func(rate vm.DiskRate) any {
		for _, call := range configuration(vm.Spec{Disks: []vm.Disk{{Rate: rate}}}) {
			if call.step == "disks" {
				return call.body
			}
		}
		return nil
	}
	for _, c := range []struct {
		rate vm.DiskRate
		want *rateLimiter
	}{
		{vm.DiskRate{}, nil},
		{vm.DiskRate{BytesPerSecond: 5}, &rateLimiter{Bytes: &tokenBucket{5, 1000}}},
		{vm.DiskRate{BytesPerSecond: 5, OperationsPerSecond: 7}, &rateLimiter{&tokenBucket{5, 1000}, &tokenBucket{7, 1000}}},
	} {
		if diff := cmp.Diff(drive{ID: "disk0", Path: "disk0", Rate: c.want}, disk(c.rate)); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.rate, diff)
		}
	}
}

// A restored machine has the rates of its spec, also none where the snapshot's had some.
func TestRateOfARestoredDisk(t *testing.T) {
	const limited = `{"drive_id":"disk0","rate_limiter":{"bandwidth":{"size":5,"refill_time":1000},"ops":{"size":0,"refill_time":1000}}}`
	for _, c := range []struct {
		name   string
		rate   vm.DiskRate
		before bool
		want   string
	}{
		{"none", vm.DiskRate{}, false, ""},
		{"one", vm.DiskRate{BytesPerSecond: 5}, false, limited},
		{"no longer", vm.DiskRate{}, true, strings.ReplaceAll(limited, `"size":5`, `"size":0`)},
	} {
		var got string
		api := serve(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got += r.Method + " " + r.URL.Path + " " + string(body)
			w.WriteHeader(http.StatusNoContent)
		})
		m := &machine{api: api, shape: shape{Limited: c.rate != vm.DiskRate{}}}
		if err := m.setRates(t.Context(), []vm.Disk{{Rate: c.rate}}, c.before); err != nil {
			t.Fatal(err)
		}
		want := c.want
		if want != "" {
			want = "PATCH /drives/disk0 " + want
		}
		if got != want {
			t.Errorf("%s: %s, want %s", c.name, got, want)
		}
	}
}
