package scheduler_test

import (
	"testing"

	"wrenn"
	"wrenn/internal/controlplane/scheduler"
)

func host(id string, used, of int64) scheduler.Host {
	return scheduler.Host{ID: wrenn.HostID(id), Capacity: wrenn.Capacity{
		Sandboxes: 10, SandboxesUsed: int(used / 512), MemoryMiB: of, MemoryMiBUsed: used,
	}}
}

func TestPick(t *testing.T) {
	pending := host("a", 0, 4096)
	pending.PendingSandboxes, pending.PendingMemoryMB = 4, 2048
	many := host("a", 0, 1<<20)
	many.Capacity.SandboxesUsed = 10
	for name, c := range map[string]struct {
		hosts []scheduler.Host
		want  wrenn.HostID
		code  wrenn.Code
	}{
		"none":                             {nil, "", wrenn.Unavailable},
		"the emptier":                      {[]scheduler.Host{host("a", 1024, 4096), host("b", 512, 4096)}, "b", ""},
		"in parts of what it has":          {[]scheduler.Host{host("a", 1024, 4096), host("b", 2048, 16384)}, "b", ""},
		"the first of two":                 {[]scheduler.Host{host("b", 0, 4096), host("a", 0, 4096)}, "a", ""},
		"what was just sent counts":        {[]scheduler.Host{pending, host("b", 1024, 4096)}, "b", ""},
		"one that is full is left out":     {[]scheduler.Host{host("a", 3800, 4096), host("b", 3000, 4096)}, "b", ""},
		"all full":                         {[]scheduler.Host{host("a", 4096, 4096)}, "", wrenn.Exhausted},
		"too many, though small":           {[]scheduler.Host{many}, "", wrenn.Exhausted},
		"one without a place for its disk": {[]scheduler.Host{{ID: "a", Capacity: wrenn.Capacity{DisksMiB: 20000, DisksMiBUsed: 10240}}, host("b", 3000, 4096)}, "b", ""},
		"its disk was just sent":           {[]scheduler.Host{{ID: "a", Capacity: wrenn.Capacity{DisksMiB: 20480}, PendingDiskMB: 10241}}, "", wrenn.Exhausted},
		"one without limits":               {[]scheduler.Host{host("a", 512, 4096), {ID: "b", Capacity: wrenn.Capacity{SandboxesUsed: 99, MemoryMiBUsed: 1 << 20}}}, "b", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := scheduler.Pick(c.hosts, scheduler.Need{MemoryMB: 512, DiskMB: 10240})
			if got != c.want || wrenn.CodeOf(err) != c.code {
				t.Errorf("got %q, %v; want %q, %q", got, err, c.want, c.code)
			}
		})
	}
}
