//go:build nested

// Package nested tests with Firecracker where there is no KVM: QEMU emulates a
// machine (L1) whose kernel has one, and the tests of the Firecracker driver
// run in it, against real guests (L2).
package nested

import (
	"cmp"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wrenn/e2e/nested/l1"
	"wrenn/internal/storage"
)

func TestFirecracker(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "building the nested machine's disk needs root")
	}
	cache := filepath.Join("..", "..", ".cache", "nested")
	cache, err := filepath.Abs(cache)
	must(t, err)
	must(t, os.MkdirAll(cache, 0o755))
	kernel := fetchKernel(t, cache)
	dir := t.TempDir()
	m := machine{
		kernel:  kernelImage(t, kernel),
		initrd:  filepath.Join(dir, "initrd"),
		disk:    filepath.Join(dir, "disk"),
		work:    filepath.Join(dir, "work"),
		console: filepath.Join(dir, "console"),
	}
	init := filepath.Join(dir, "init")
	output(t, "", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "wrenn/e2e/nested/l1init")
	writeInitramfs(t, m.initrd, init, kernel)

	root := filepath.Join(dir, "root")
	must(t, os.MkdirAll(root, 0o755))
	plan := suites(t, root, releases(t, cache))
	writeDisk(t, m.disk, root, plan)
	writeWork(t, m.work)
	results := &results{t: t}
	m.run(t, results.line)
	results.report(plan)
}

// suites puts all that the tests need below root, and plans them: the whole
// suite with the newest release, the essence with the others.
func suites(t *testing.T, root string, all []release) l1.Plan {
	t.Helper()
	guest := putGuest(t, root)
	const tests = "/firecracker.test"
	output(t, "", "go", "test", "-c", "-tags", "root,vm", "-trimpath", "-ldflags=-s -w",
		"-o", filepath.Join(root, tests), "wrenn/internal/vm/firecracker")
	var plan l1.Plan
	asked := askedFor()
	for i, r := range all {
		where := filepath.Join("/releases", r.version)
		must(t, os.MkdirAll(filepath.Join(root, where), 0o755))
		for _, name := range []string{"firecracker", "jailer"} {
			_, err := storage.Clone(t.Context(), filepath.Join(root, where, name), filepath.Join(r.dir, name), 0o755)
			must(t, err)
		}
		run := "."
		if i < len(all)-1 {
			run = essence
		}
		if asked.release != "" {
			if !regexp.MustCompile(asked.release).MatchString(r.version) {
				continue
			}
			run = cmp.Or(asked.tests, run)
		}
		plan.Programs = append(plan.Programs, l1.Program{
			Name: r.version,
			Args: []string{tests, "-test.v", "-test.timeout=10m", "-test.run=" + run},
			Env: append([]string{
				"WRENN_CI=1", // whatever is left out here, is by mistake
				"WRENN_TEST_FIRECRACKER=" + where + "/firecracker",
				"WRENN_TEST_JAILER=" + where + "/jailer",
			}, guest...),
		})
	}
	return plan
}

// essence is what older releases are tested for: boot, snapshot, restore.
const essence = "^TestConformance$/^(Life|RestoreIntoAnotherSlot)$"

// asked is what of the nested tests to run: with
// -run TestFirecracker/v1.17/TestConformance/Life one test with one release.
type asked struct{ release, tests string }

// askedFor reads -run, which knows nothing of tests in L1.
func askedFor() asked {
	_, rest, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	release, tests, _ := strings.Cut(rest, "/")
	return asked{release, tests}
}
