package scheduler_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/scheduler"
	"wrenn.dev/internal/testkit"
)

func host(id string, used, of int64) scheduler.Host {
	return scheduler.Host{ID: wrenn.HostID(id), Reachable: true, HasStore: true, Capacity: wrenn.Capacity{
		Sandboxes: 10, SandboxesUsed: int(used / 512), MemoryMiB: of, MemoryMiBUsed: used,
	}}
}

// with returns a changed copy.
func with(h scheduler.Host, change func(*scheduler.Host)) scheduler.Host {
	change(&h)
	return h
}

func TestPick(t *testing.T) {
	firecracker := wrenn.Platform{Driver: "firecracker", Version: "1.12.0", Processor: "Xeon 1"}
	zone := func(name string) func(*scheduler.Host) { return func(h *scheduler.Host) { h.Zone = name } }
	status := func(s wrenn.HostStatus) func(*scheduler.Host) { return func(h *scheduler.Host) { h.Status = s } }
	empty, half := host("a", 0, 4096), host("b", 2048, 4096)
	many := with(empty, func(h *scheduler.Host) { h.Capacity.MemoryMiB, h.Capacity.SandboxesUsed = 1<<20, 10 })
	for name, c := range map[string]struct {
		hosts  []scheduler.Host
		change func(*scheduler.Request)
		want   wrenn.HostID
		code   wrenn.Code
	}{
		"none":                           {code: wrenn.Unavailable},
		"the emptier":                    {hosts: []scheduler.Host{host("a", 1024, 4096), host("b", 512, 4096)}, want: "b"},
		"in parts of what it has":        {hosts: []scheduler.Host{host("a", 1024, 4096), host("b", 2048, 16384)}, want: "b"},
		"the first of two":               {hosts: []scheduler.Host{host("b", 0, 4096), host("a", 0, 4096)}, want: "a"},
		"what was just sent counts":      {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.PendingSandboxes, h.PendingMemoryMB = 4, 3000 }), half}, want: "b"},
		"one that is full is left out":   {hosts: []scheduler.Host{host("a", 3800, 4096), host("b", 3000, 4096)}, want: "b"},
		"all full":                       {hosts: []scheduler.Host{host("a", 4096, 4096)}, code: wrenn.Exhausted},
		"too many, though small":         {hosts: []scheduler.Host{many}, code: wrenn.Exhausted},
		"no place for its disk":          {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Capacity.DisksMiB, h.Capacity.DisksMiBUsed = 20000, 10240 }), half}, want: "b"},
		"its disk was just sent":         {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Capacity.DisksMiB, h.PendingDiskMB = 20480, 10241 })}, code: wrenn.Exhausted},
		"hardly any disk is free":        {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Capacity.DiskMiB, h.Capacity.DiskMiBFree = 1<<20, 2047 }), half}, want: "b"},
		"a small disk":                   {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Capacity.DiskMiB, h.Capacity.DiskMiBFree = 4096, 615 })}, want: "a"},
		"one without limits":             {hosts: []scheduler.Host{host("a", 512, 4096), {ID: "b", Reachable: true, Capacity: wrenn.Capacity{SandboxesUsed: 99, MemoryMiBUsed: 1 << 20}}}, want: "b"},
		"cordoned":                       {hosts: []scheduler.Host{with(empty, status(wrenn.HostCordoned)), half}, want: "b"},
		"drained":                        {hosts: []scheduler.Host{with(empty, status(wrenn.HostDraining)), half}, want: "b"},
		"lost":                           {hosts: []scheduler.Host{with(empty, status(wrenn.HostLost)), half}, want: "b"},
		"does not answer":                {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Reachable = false }), half}, want: "b"},
		"all cordoned":                   {hosts: []scheduler.Host{with(empty, status(wrenn.HostCordoned))}, code: wrenn.Unavailable},
		"cordoned or full":               {hosts: []scheduler.Host{with(empty, status(wrenn.HostCordoned)), host("b", 4096, 4096)}, code: wrenn.Exhausted},
		"only one may have it":           {hosts: []scheduler.Host{empty, half}, change: func(r *scheduler.Request) { r.Only = "b" }, want: "b"},
		"refused this size":              {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.RefusedMB = 512 }), half}, want: "b"},
		"refused a larger one":           {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.RefusedMB = 513 }), half}, want: "a"},
		"refused":                        {hosts: []scheduler.Host{empty, half}, change: func(r *scheduler.Request) { r.Except = map[wrenn.HostID]bool{"a": true} }, want: "b"},
		"a label":                        {hosts: []scheduler.Host{empty, with(half, func(h *scheduler.Host) { h.Labels = map[string]string{"gpu": "a10", "disk": "nvme"} })}, change: func(r *scheduler.Request) { r.Requires = map[string]string{"gpu": "a10"} }, want: "b"},
		"another value of a label":       {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Labels = map[string]string{"gpu": "a10"} })}, change: func(r *scheduler.Request) { r.Requires = map[string]string{"gpu": "h100"} }, code: wrenn.FailedPrecondition},
		"an empty label is none":         {hosts: []scheduler.Host{empty}, change: func(r *scheduler.Request) { r.Requires = map[string]string{"gpu": ""} }, code: wrenn.FailedPrecondition},
		"a zone":                         {hosts: []scheduler.Host{with(empty, zone("x")), with(half, zone("y"))}, change: func(r *scheduler.Request) { r.Requires = map[string]string{"zone": "y"} }, want: "b"},
		"spread over zones":              {hosts: []scheduler.Host{with(empty, zone("x")), with(host("b", 1000, 4096), zone("x")), with(host("c", 1200, 4096), zone("y"))}, change: func(r *scheduler.Request) { r.Team = map[wrenn.HostID]int{"a": 3} }, want: "c"},
		"a zone is not worth everything": {hosts: []scheduler.Host{with(empty, zone("x")), with(host("b", 3000, 4096), zone("y"))}, change: func(r *scheduler.Request) { r.Team = map[wrenn.HostID]int{"a": 3} }, want: "a"},
		"other teams do not matter":      {hosts: []scheduler.Host{with(empty, zone("x")), with(half, zone("y"))}, want: "a"},
		"not all of a team on one":       {hosts: []scheduler.Host{empty, host("b", 512, 4096)}, change: func(r *scheduler.Request) { r.Team = map[wrenn.HostID]int{"a": 5, "b": 1} }, want: "b"},
		"where the snapshot is":          {hosts: []scheduler.Host{empty, host("b", 3500, 4096)}, change: func(r *scheduler.Request) { r.Snapshot, r.Origin = &wrenn.Platform{}, "b" }, want: "b"},
		"not where the snapshot is":      {hosts: []scheduler.Host{empty, host("b", 3600, 4096)}, change: func(r *scheduler.Request) { r.Snapshot, r.Origin = &wrenn.Platform{}, "b" }, want: "a"},
		"its origin is cordoned":         {hosts: []scheduler.Host{empty, with(half, status(wrenn.HostCordoned))}, change: func(r *scheduler.Request) { r.Snapshot, r.Origin = &wrenn.Platform{}, "b" }, want: "a"},
		"it stays though that is":        {hosts: []scheduler.Host{empty, with(half, status(wrenn.HostCordoned))}, change: func(r *scheduler.Request) { r.Snapshot, r.Origin, r.Stays = &wrenn.Platform{}, "b", true }, want: "b"},
		"a paused one counts there":      {hosts: []scheduler.Host{with(many, func(h *scheduler.Host) { h.Capacity.MemoryMiBUsed = 512 })}, change: func(r *scheduler.Request) { r.Snapshot, r.Origin = &wrenn.Platform{}, "a" }, want: "a"},
		"no store":                       {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.HasStore = false }), half}, change: func(r *scheduler.Request) { r.Snapshot, r.Origin = &wrenn.Platform{}, "c" }, want: "b"},
		"another processor":              {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Platform = wrenn.Platform{Driver: "firecracker", Processor: "Xeon 2"} })}, change: func(r *scheduler.Request) { r.Snapshot = &firecracker }, code: wrenn.FailedPrecondition},
		"the same processor": {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) {
			h.Platform = wrenn.Platform{Driver: "firecracker", Version: "1.13.0", Processor: "Xeon 1"}
		})}, change: func(r *scheduler.Request) { r.Snapshot = &firecracker }, want: "a"},
		"another VMM":                     {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Platform = wrenn.Platform{Driver: "qemu"} })}, change: func(r *scheduler.Request) { r.Snapshot = &firecracker }, code: wrenn.FailedPrecondition},
		"another QEMU":                    {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Platform = wrenn.Platform{Driver: "qemu", Version: "9"} })}, change: func(r *scheduler.Request) { r.Snapshot = &wrenn.Platform{Driver: "qemu", Version: "7"} }, code: wrenn.FailedPrecondition},
		"emulation and KVM":               {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Platform = wrenn.Platform{Driver: "qemu-kvm", Version: "7"} })}, change: func(r *scheduler.Request) { r.Snapshot = &wrenn.Platform{Driver: "qemu", Version: "7"} }, code: wrenn.FailedPrecondition},
		"another QEMU with KVM":           {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Platform = wrenn.Platform{Driver: "qemu-kvm", Version: "9"} })}, change: func(r *scheduler.Request) { r.Snapshot = &wrenn.Platform{Driver: "qemu-kvm", Version: "7"} }, code: wrenn.FailedPrecondition},
		"an agent with no platform":       {hosts: []scheduler.Host{empty}, change: func(r *scheduler.Request) { r.Snapshot = &firecracker }, want: "a"},
		"a processor is no matter to new": {hosts: []scheduler.Host{with(empty, func(h *scheduler.Host) { h.Platform = firecracker })}, want: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			r := scheduler.Request{MemoryMB: 512, DiskMB: 10240}
			if c.change != nil {
				c.change(&r)
			}
			got, err := scheduler.Pick(c.hosts, &r)
			if got.Host != c.want || wrenn.CodeOf(err) != c.code {
				t.Errorf("got %q, %v; want %q, %q", got.Host, err, c.want, c.code)
			}
			verdicts := scheduler.Explain(c.hosts, &r)
			if len(verdicts) != len(c.hosts) || len(verdicts) > 0 && (verdicts[0].Reason == scheduler.Fits) != (err == nil) || err == nil && verdicts[0].Host != c.want {
				t.Errorf("explained: %+v", verdicts)
			}
		})
	}
}

// TestNoneError: the error of a create has the counts, and what to do.
// TestTemplate: hosts that have a stored template are preferred, until they are much
// fuller than one that can fetch it.
func TestTemplate(t *testing.T) {
	platform := func(h scheduler.Host, processor string, fetches bool) scheduler.Host {
		return with(h, func(h *scheduler.Host) { h.Platform.Processor, h.FetchesTemplates = processor, fetches })
	}
	empty := host("a", 0, 4096)
	for name, c := range map[string]struct {
		hosts []scheduler.Host
		want  wrenn.HostID
		code  wrenn.Code
	}{
		"the one that has it":      {hosts: []scheduler.Host{platform(empty, "x", true), platform(host("b", 2000, 4096), "x", false)}, want: "b"},
		"another one fetches it":   {hosts: []scheduler.Host{platform(empty, "x", true), platform(host("b", 2700, 4096), "x", true)}, want: "a"},
		"as the other is full":     {hosts: []scheduler.Host{platform(empty, "", true), platform(host("b", 4096, 4096), "x", true)}, want: "a"},
		"no store, or older agent": {hosts: []scheduler.Host{platform(empty, "x", false)}, code: wrenn.Unavailable},
		"another processor":        {hosts: []scheduler.Host{platform(empty, "y", true)}, code: wrenn.FailedPrecondition},
		"one that has it anyway":   {hosts: []scheduler.Host{platform(host("b", 0, 4096), "y", true)}, want: "b"},
	} {
		r := &scheduler.Request{MemoryMB: 512, Template: &scheduler.Template{Platform: wrenn.Platform{Processor: "x"}, On: map[wrenn.HostID]bool{"b": true}}}
		picked, err := scheduler.Pick(c.hosts, r)
		if picked.Host != c.want || wrenn.CodeOf(err) != c.code {
			t.Errorf("%s: %s, %v", name, picked.Host, err)
		}
		for _, v := range scheduler.Explain(c.hosts, r) {
			if v.Detail == "" {
				t.Errorf("%s: nothing is said of %s", name, v.Host)
			}
		}
	}
}

func TestNoneError(t *testing.T) {
	hosts := []scheduler.Host{host("a", 4096, 4096), host("b", 4000, 4096), host("c", 0, 4096), host("d", 0, 4096)}
	hosts[2].Status, hosts[3].Reachable = wrenn.HostCordoned, false
	_, err := scheduler.Pick(hosts, &scheduler.Request{MemoryMB: 512, DiskMB: 10240})
	testkit.WantCode(t, err, wrenn.Exhausted, "no host fits a sandbox with 512 MB of memory and a disk of 10240 MB: of 4, 1 does not answer, "+
		"1 takes no new sandboxes: an operator has cordoned it, 2 have not enough free memory; delete some, or ask for less")
	_, err = scheduler.Pick(hosts[:2], &scheduler.Request{Requires: map[string]string{"gpu": "a10", "disk": "nvme"}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "that requires disk=nvme, gpu=a10: of 2, 2 do not have the labels that the sandbox requires")
}

func TestExplain(t *testing.T) {
	hosts := []scheduler.Host{host("a", 4096, 4096), host("b", 1024, 4096), host("c", 0, 4096)}
	hosts[1].Zone, hosts[2].Zone = "x", "y"
	var got []string
	for _, v := range scheduler.Explain(hosts, &scheduler.Request{MemoryMB: 1024, Team: map[wrenn.HostID]int{"b": 1, "c": 4}}) {
		got = append(got, string(v.Host)+": "+v.Detail)
	}
	want := []string{
		"b: 50 % of its memory used, 20 % of the team's sandboxes in its zone, 20 % of the team's sandboxes on it",
		"c: 25 % of its memory used, 80 % of the team's sandboxes in its zone, 80 % of the team's sandboxes on it",
		"a: has not enough free memory: 0 of 4096 MB are free, 1024 MB are needed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// fleet is hosts that count by themselves, and the control planes that see them.
type fleet struct {
	hosts  []scheduler.Host // the truth
	number map[wrenn.HostID]int
}

func newFleet(n int) *fleet {
	f := &fleet{number: map[wrenn.HostID]int{}}
	for i := range n {
		f.join(i)
	}
	return f
}

func (f *fleet) join(i int) {
	h := host(fmt.Sprintf("h%04d", i), 0, 60_000)
	h.Capacity.Sandboxes, h.Zone = 110, string(rune('a'+i%3))
	f.number[h.ID] = len(f.hosts)
	f.hosts = append(f.hosts, h)
}

// create is what a host does: it refuses when it is full or gone.
func (f *fleet) create(id wrenn.HostID) bool {
	h := &f.hosts[f.number[id]]
	if h.Status == wrenn.HostLost || h.Capacity.SandboxesUsed == h.Capacity.Sandboxes || h.Capacity.MemoryMiBUsed+512 > h.Capacity.MemoryMiB {
		return false
	}
	h.Capacity.SandboxesUsed++
	h.Capacity.MemoryMiBUsed += 512
	return true
}

// TestFleet fills 1,000 hosts to 100 sandboxes each by two control planes, whose
// knowledge is old, while hosts join and get lost.
func TestFleet(t *testing.T) {
	const hosts, before, each, teams, look = 1000, 92, 8, 50, 400 // look is the creates between two looks of a plane
	f := newFleet(hosts)
	for i := range f.hosts {
		for range before - 10 + i%21 { // they are not equally full
			f.create(f.hosts[i].ID)
		}
	}
	planes := [2][]scheduler.Host{}
	byTeam := make([]map[wrenn.HostID]int, teams)
	for i := range byTeam {
		byTeam[i] = map[wrenn.HostID]int{}
	}
	retries, most := 0, 0
	for n := range hosts * each {
		p := n % 2
		if n%look == p || planes[p] == nil {
			planes[p] = append(planes[p][:0], f.hosts...)
		}
		if n%1000 == 7 {
			f.hosts[n/10].Status = wrenn.HostLost
			f.join(len(f.hosts))
		}
		r := scheduler.Request{MemoryMB: 512, Team: byTeam[n%teams], Except: map[wrenn.HostID]bool{}}
		for {
			picked, err := scheduler.Pick(planes[p], &r)
			if err != nil {
				t.Fatalf("sandbox %d: %v", n, err)
			}
			if f.create(picked.Host) {
				h := &planes[p][f.number[picked.Host]]
				h.PendingSandboxes++
				h.PendingMemoryMB += 512
				byTeam[n%teams][picked.Host]++
				break
			}
			r.Except[picked.Host] = true
			planes[p][f.number[picked.Host]].RefusedMB = 512
		}
		retries += len(r.Except)
		most = max(most, len(r.Except))
	}
	fullest := 0
	for i := range f.hosts {
		fullest = max(fullest, f.hosts[i].Capacity.SandboxesUsed)
	}
	t.Logf("%d hosts, at most %d sandboxes on one; %d retries for %d creates, at most %d for one", len(f.hosts), fullest, retries, hosts*each, most)
	if retries > hosts*each/20 || most > 2 {
		t.Error("too many")
	}
	for i, team := range byTeam {
		zones := map[string]int{}
		for id, n := range team {
			zones[f.hosts[f.number[id]].Zone] += n
		}
		for zone, n := range zones {
			if n > hosts*each/teams/2 {
				t.Errorf("team %d has %d sandboxes in zone %s", i, n, zone)
			}
		}
	}
}

// TestCollision: of two control planes that pick the last place of a host at once, one
// is refused, and its second pick is the last.
func TestCollision(t *testing.T) {
	f := newFleet(2)
	for range 109 {
		f.create("h0000")
		f.create("h0001")
	}
	seen := [2][]scheduler.Host{slices.Clone(f.hosts), slices.Clone(f.hosts)}
	for p, want := range []wrenn.HostID{"h0000", "h0001"} {
		r := scheduler.Request{MemoryMB: 512, Except: map[wrenn.HostID]bool{}}
		asked := 0
		for {
			picked, err := scheduler.Pick(seen[p], &r)
			testkit.Must(t, err)
			if asked++; f.create(picked.Host) {
				if picked.Host != want || asked != p+1 {
					t.Errorf("plane %d: %s after %d", p, picked.Host, asked)
				}
				break
			}
			r.Except[picked.Host] = true
		}
	}
}

func BenchmarkPick(b *testing.B) {
	f := newFleet(1000)
	r := scheduler.Request{MemoryMB: 512, DiskMB: 10240, Team: map[wrenn.HostID]int{}, Requires: map[string]string{"zone": "a"}}
	for i := range f.hosts {
		f.hosts[i].Capacity.MemoryMiBUsed = int64(i * 7 % 50_000)
		r.Team[f.hosts[i].ID] = i % 3
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := scheduler.Pick(f.hosts, &r); err != nil {
			b.Fatal(err)
		}
	}
}
