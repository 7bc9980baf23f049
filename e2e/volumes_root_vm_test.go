//go:build root && vm

package e2e

import (
	"strings"
	"testing"
)

// testVolumes shares a volume between two sandboxes, which it outlives.
func testVolumes(t *testing.T, e *everything) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("up printed:\n%s", e.out)
		}
	})
	e.must(t, nil, "volume", "create", "data", "--size", "64M")
	create := func() string {
		return strings.TrimSpace(e.must(t, nil, "sandbox", "create", "--volume", "data:/mnt/data"))
	}
	sh := func(id, script string) string { return e.must(t, nil, "sandbox", "exec", id, "--", "sh", "-c", script) }
	one, two := create(), create()
	sh(one, "su user -c 'echo of a user > /mnt/data/file'")
	if got := sh(two, "cat /mnt/data/file && stat -c %U /mnt/data/file && echo more >> /mnt/data/file"); got != "of a user\nuser\n" {
		t.Errorf("the other sandbox reads %q", got)
	}
	e.must(t, nil, "sandbox", "pause", one)
	e.must(t, nil, "sandbox", "resume", one)
	if got := sh(one, "cat /mnt/data/file"); got != "of a user\nmore\n" {
		t.Errorf("after a pause the first one reads %q", got)
	}
	if code, _ := e.wrenn(t, nil, "volume", "delete", "data"); code == 0 {
		t.Error("a volume in use was deleted")
	}
	e.must(t, nil, "sandbox", "kill", one, two)
	three := create()
	if got := sh(three, "cat /mnt/data/file; head -c 80M /dev/zero > /mnt/data/big || true; rm /mnt/data/big"); got != "of a user\nmore\n" {
		t.Errorf("a later sandbox reads %q", got)
	}
	e.must(t, nil, "sandbox", "kill", three)
	e.must(t, nil, "volume", "delete", "data")
}
