package inpod

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	testkit.Must(t, os.WriteFile(name, []byte(text), 0o755))
	return name
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	testkit.Must(t, err)
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

func TestCopyPrograms(t *testing.T) {
	image, state := t.TempDir(), filepath.Join(t.TempDir(), "bin")
	agent, envd := write(t, filepath.Join(image, "host-agent"), "1"), write(t, filepath.Join(image, "envd"), "e")
	first, err := CopyPrograms(state, []string{agent, envd})
	testkit.Must(t, err)
	again, err := CopyPrograms(state, []string{agent, envd})
	testkit.Must(t, err)
	if first != again || filepath.Dir(first) != state {
		t.Errorf("copied to %s, then to %s", first, again)
	}
	if diff := cmp.Diff([]string{"envd", "host-agent"}, names(t, first)); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(filepath.Join(first, "host-agent")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the copy is %v, %v", info, err)
	}
	testkit.Must(t, os.Mkdir(filepath.Join(state, ".new-123"), 0o755)) // of an agent that was killed
	write(t, agent, "2")
	second, err := CopyPrograms(state, []string{agent, envd})
	testkit.Must(t, err)
	if diff := cmp.Diff([]string{filepath.Base(second)}, names(t, state)); diff != "" || second == first {
		t.Errorf("after an upgrade to %s: %s", second, diff)
	}
	if _, err := CopyPrograms(state, []string{filepath.Join(image, "none")}); err == nil {
		t.Error("a program that is missing")
	}
}

func TestHierarchies(t *testing.T) {
	const mixed = `24 1 0:22 / /sys rw shared:7 - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
40 1 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct
41 1 0:50
42 1 0:51 / /x rw -
`
	want := []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/cpu,cpuacct"}
	if diff := cmp.Diff(want, hierarchies([]byte(mixed))); diff != "" {
		t.Error(diff)
	}
}
