package sandbox

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/vm"
)

func TestVigil(t *testing.T) {
	began := time.Now()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	fresh := func() *vigil { return &vigil{limit: 9 * time.Second, since: began} }
	for name, tc := range map[string]struct {
		do   func(*vigil)
		want bool
	}{
		"nothing yet":                  {func(*vigil) {}, false},
		"two misses, however long":     {func(v *vigil) { v.missed(at(100), false); v.missed(at(200), false) }, false},
		"three misses in a short time": {func(v *vigil) { v.missed(at(1), false); v.missed(at(2), false); v.missed(at(3), false) }, false},
		"three misses, and the time":   {func(v *vigil) { v.missed(at(3), false); v.missed(at(6), false); v.missed(at(9), false) }, true},
		"a sign of life in between":    {func(v *vigil) { v.missed(at(3), false); v.missed(at(6), false); v.alive(at(7)); v.missed(at(9), false) }, false},
		"too little CPU":               {func(v *vigil) { v.missed(at(3), true); v.missed(at(6), true); v.missed(at(12), true) }, false},
		"too little CPU for too long":  {func(v *vigil) { v.missed(at(3), true); v.missed(at(6), true); v.missed(at(36), true) }, true},
		"silent, then too little CPU": {func(v *vigil) {
			for i := range 3 {
				v.missed(at(3*i+3), false)
			}
			v.missed(at(12), true)
		}, true},
		"silent, then a sign of life": {func(v *vigil) {
			for i := range 3 {
				v.missed(at(3*i+3), false)
			}
			v.alive(at(10))
		}, false},
	} {
		v := fresh()
		if tc.do(v); v.silent != tc.want {
			t.Errorf("%s: silent is %v", name, v.silent)
		}
	}
}

// records reads like /dev/kmsg.
func records(all ...string) func([]byte) (int, error) {
	return func(p []byte) (int, error) {
		if len(all) == 0 {
			return 0, unix.EAGAIN
		}
		record := all[0]
		all = all[1:]
		if record == "" {
			return 0, unix.EPIPE
		}
		return copy(p, record), nil
	}
}

func TestOOMKillsInTheKernelsLog(t *testing.T) {
	ref := &vm.Ref{PID: 123, StartTime: 1000} // 10 s after the boot
	record := func(priority, us int, pid int) string {
		return fmt.Sprintf("%d,77,%d,-;Out of memory: Killed process %d (qemu-system-x86) total-vm:1kB\n SUBSYSTEM=x\n", priority, us, pid)
	}
	for name, tc := range map[string]struct {
		log  []string
		want bool
	}{
		"it":                         {[]string{"6,1,0,-;Linux version", "", record(3, 20_000_000, 123)}, true},
		"by its cgroup":              {[]string{strings.Replace(record(3, 20_000_000, 123), "Out of", "Memory cgroup out of", 1)}, true},
		"another process":            {[]string{record(3, 20_000_000, 1234)}, false},
		"an earlier one of that pid": {[]string{record(3, 5_000_000, 123)}, false},
		"what a program wrote":       {[]string{record(11, 20_000_000, 123)}, false},
		"no record":                  {[]string{"Out of memory: Killed process 123 (x)", "x,1,2,3;Out of memory: Killed process 123 (x)"}, false},
		"nothing":                    {nil, false},
	} {
		if got := hasOOMKill(records(tc.log...), ref); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
