//go:build nested

// Package nested tests with Firecracker where there is no KVM: QEMU emulates a
// machine (L1) whose kernel has one, and the tests of the Firecracker driver
// run in it, against real guests (L2).
package nested

import (
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

// suites puts all that the tests need below root, and plans them.
func suites(t *testing.T, root string, all []release) l1.Plan {
	t.Helper()
	guest := putGuest(t, root)
	const tests = "/firecracker.test"
	output(t, "", "go", "test", "-c", "-tags", "root,vm", "-trimpath", "-ldflags=-s -w",
		"-o", filepath.Join(root, tests), "wrenn/internal/vm/firecracker")
	var plan l1.Plan
	for i, r := range all {
		where := filepath.Join("/releases", r.version)
		must(t, os.MkdirAll(filepath.Join(root, where), 0o755))
		for _, name := range []string{"firecracker", "jailer"} {
			_, err := storage.Clone(t.Context(), filepath.Join(root, where, name), filepath.Join(r.dir, name), 0o755)
			must(t, err)
		}
		env := append([]string{
			"WRENN_CI=1", // whatever is left out here, is by mistake
			"WRENN_TEST_FIRECRACKER=" + where + "/firecracker",
			"WRENN_TEST_JAILER=" + where + "/jailer",
		}, guest...)
		for _, run := range runs(r, i == len(all)-1) {
			args := append([]string{tests, "-test.v", "-test.timeout=15m"}, run.args...)
			plan.Programs = append(plan.Programs, l1.Program{Name: run.name, Args: args, Env: env})
		}
	}
	if len(plan.Programs) == 0 {
		t.Fatal("-run names none of the releases")
	}
	return plan
}

// run is one run of the driver's tests.
type run struct {
	name string
	args []string
}

// The whole suite takes minutes, so the newest release alone gets it; what is
// different between releases, and without the jailer, shows in a few tests.
const (
	essence       = "^TestConformance$/^(Life|RestoreIntoAnotherSlot)$"
	withoutJailer = "^TestConformanceWithoutJailer$/^(Life|RestoreIntoAnotherSlot|Adopt)$"
)

// runs are those of a release: what -run asks for, or what is worth it.
func runs(r release, newest bool) []run {
	asked, tests := asked()
	switch {
	case !asked.MatchString(r.version):
		return nil
	case tests != "":
		return []run{{r.version, []string{"-test.run=" + tests}}}
	case newest:
		return []run{
			{r.version, []string{"-test.skip=^TestConformanceWithoutJailer$"}},
			{r.version + "-without-jailer", []string{"-test.run=" + withoutJailer}},
		}
	default:
		return []run{{r.version, []string{"-test.run=" + essence}}}
	}
}

// asked is what -run says of releases and of tests in L1, of which it knows
// nothing: TestFirecracker/v1.17/TestConformance/Life is one test with one release.
func asked() (releases *regexp.Regexp, tests string) {
	_, rest, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	release, tests, _ := strings.Cut(rest, "/")
	return regexp.MustCompile(release), tests
}
