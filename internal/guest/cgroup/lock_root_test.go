//go:build root

package cgroup

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

func TestLockCode(t *testing.T) {
	if err := lockCode(); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	locked := regexp.MustCompile(`(?m)^VmLck:\s+(\d+) kB$`).FindSubmatch(status)
	if locked == nil {
		t.Fatal("no VmLck in /proc/self/status")
	}
	if kib, err := strconv.Atoi(string(locked[1])); err != nil || kib < 1024 {
		t.Errorf("%s KiB of this program are locked, %v", locked[1], err)
	}
}
