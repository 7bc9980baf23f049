//go:build nested

package nested

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wrenn.dev/e2e/nested/l1"
	"wrenn.dev/internal/testkit"
)

func TestFirecracker(t *testing.T) {
	runInL1(t, amd, func(root, cache string) l1.Plan { return suites(t, root, releases(t, cache)) })
}

// The processors of L1. QEMU 7.2 emulates AMD's virtualization, but does not tell KVM
// when a guest sets XCR0, so KVM runs the guest with XCR0 = 1, and what the guest saves
// by XSAVE lacks the XMM registers: now and then a program in a guest dies. Guests
// without XSAVE save them otherwise. Firecracker demands XSAVE.
const (
	amd             = "EPYC"
	amdWithoutXSAVE = "EPYC,xsave=off"
)

// runInL1 boots L1, with that processor and a disk that fill fills, and makes a subtest of each test that
// runs there. fill gets the directory of the disk's files, and one for downloads.
func runInL1(t *testing.T, processor string, fill func(root, cache string) l1.Plan) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "building the nested machine's disk needs root")
	}
	cache := filepath.Join("..", "..", ".cache", "nested")
	cache, err := filepath.Abs(cache)
	testkit.Must(t, err)
	testkit.Must(t, os.MkdirAll(cache, 0o755))
	kernel := fetchKernel(t, cache)
	dir := t.TempDir()
	m := machine{
		processor: processor,
		kernel:    kernelImage(t, kernel),
		initrd:    filepath.Join(dir, "initrd"),
		disk:      filepath.Join(dir, "disk"),
		work:      filepath.Join(dir, "work"),
		console:   filepath.Join(dir, "console"),
	}
	init := filepath.Join(dir, "init")
	output(t, "", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "wrenn.dev/e2e/nested/l1init")
	writeInitramfs(t, m.initrd, init, kernel)

	root := filepath.Join(dir, "root")
	testkit.Must(t, os.MkdirAll(root, 0o755))
	plan := fill(root, cache)
	if len(plan.Programs) == 0 {
		t.Fatal("-run names none of the runs")
	}
	writeDisk(t, m.disk, root, plan)
	writeWork(t, m.work)
	results := &results{t: t}
	m.run(t, results.line)
	results.report(plan)
}

// The tests that run in L1: those of the driver, and those of a whole host that
// need no database.
const (
	driverTests = "/firecracker.test"
	hostTests   = "/e2e.test"
)

// suites puts everything that the tests need below root, and returns the plan.
func suites(t *testing.T, root string, all []release) l1.Plan {
	t.Helper()
	guest := putGuest(t, root)
	putTests(t, root, map[string]string{driverTests: "wrenn.dev/internal/vm/firecracker", hostTests: "wrenn.dev/e2e"})
	var plan l1.Plan
	for i, r := range all {
		where := filepath.Join("/releases", r.version)
		for _, name := range []string{"firecracker", "jailer"} {
			put(t, root, filepath.Join(where, name), filepath.Join(r.dir, name), 0o755)
		}
		env := append([]string{
			"WRENN_CI=1", // a skipped test would be a mistake
			"WRENN_TEST_FIRECRACKER=" + where + "/firecracker",
			"WRENN_TEST_JAILER=" + where + "/jailer",
		}, guest...)
		plan.Programs = append(plan.Programs, programs(runs(r, i == len(all)-1), env)...)
	}
	return plan
}

// putTests puts test binaries below root, named by their paths there, and what the
// tests of a whole host need.
func putTests(t *testing.T, root string, packages map[string]string) {
	t.Helper()
	for tests, pkg := range packages {
		output(t, "", "go", "test", "-c", "-tags", "root,vm", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, tests), pkg)
	}
	for _, name := range []string{"host-agent", "envd", "stage0"} {
		put(t, root, "/bin/"+name, filepath.Join("../../bin", name), 0o755) // ../bin, from where the tests run
	}
	put(t, root, "/etc/os-release", "/etc/os-release", 0o644) // which Debian the guest is
}

// run is one run of tests.
type run struct {
	name, tests string
	args        []string
}

// The driver's whole suite takes minutes, so only the newest release runs it; a few
// tests cover the differences between releases, and the driver without the jailer. Of
// the host's tests it runs those that depend on the driver. An agent can die at twelve
// points of a pause and a resume; three are tested: before "paused" is written to the
// journal, after it, and in the resume.
const (
	essence       = "^TestConformance$/^(Life|RestoreIntoAnotherSlot)$"
	withoutJailer = "^TestConformanceWithoutJailer$/^(Life|RestoreIntoAnotherSlot|Adopt)$"
	wholeHost     = "^(TestGuest|TestSnapshotAndRestore|TestEightPauses)$|^TestAgentIsKilledInAPause$/^(machine_saved|paused_recorded|machine_started)$"
)

// runs returns the runs for a release.
func runs(r release, newest bool) []run {
	all := []run{{r.version, driverTests, []string{"-test.run=" + essence}}}
	if newest {
		all = []run{
			{r.version, driverTests, []string{"-test.skip=^TestConformanceWithoutJailer$"}},
			{r.version + "-without-jailer", driverTests, []string{"-test.run=" + withoutJailer}},
			{r.version + "-host", hostTests, []string{"-test.run=" + wholeHost}},
		}
	}
	return all
}

// programs returns those of the runs that -run selects, as programs of L1.
func programs(all []run, env []string) (list []l1.Program) {
	asked, tests := asked()
	for _, r := range all {
		if !asked.MatchString(r.name) {
			continue
		}
		if tests != "" {
			r.args = []string{"-test.run=" + tests}
		}
		args := append([]string{r.tests, "-test.v", "-test.timeout=40m"}, r.args...)
		list = append(list, l1.Program{Name: r.name, Args: args, Env: env})
	}
	return list
}

// asked splits -run into the parts for runs and for the tests in L1, which the testing
// package does not know: TestFirecracker/v1.17.*host/TestEightPauses is one test of a host.
func asked() (runs *regexp.Regexp, tests string) {
	_, rest, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	name, tests, _ := strings.Cut(rest, "/")
	return regexp.MustCompile(name), tests
}
