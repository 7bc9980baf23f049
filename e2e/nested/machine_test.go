//go:build nested

package nested

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"wrenn.dev/e2e/nested/l1"
	"wrenn.dev/internal/testkit"
)

// machineLimit bounds the life of L1. It takes 13 minutes alone, and twice to three
// times that beside the tests on QEMU.
const machineLimit = 60 * time.Minute

// pokeEvery is how often L1 gets a byte that it ignores, only for the interrupt.
// At each exit of a guest the emulation of AMD's virtualization clears a flag
// without a lock, and sometimes loses a flag that a timer sets at the same time. L1
// then stays halted, with the timer's interrupt pending, until another interrupt
// makes the emulator check again. Seen with QEMU 7.2.
const pokeEvery = 500 * time.Millisecond

// machine is L1: what boots, and the disks that it gets.
type machine struct {
	processor      string
	kernel, initrd string
	disk           string // /dev/vda: programs and the plan
	work           string // /dev/vdb: their working directory
	console        string // the file that gets the console
}

// command returns QEMU's command line. The processor is AMD's, whose virtualization
// QEMU can emulate. There is one vCPU: with two the guests inside get no /dev/ptp0.
// tsc=reliable: on a busy host L1's watchdog would consider the counter unstable and
// use another clock, so that runs would test different code. -serial twice: the
// console goes to a file, the results to stdout.
func (m machine) command(ctx context.Context, t *testing.T) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", m.processor, "-smp", "1", "-m", "4096",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.kernel, "-initrd", m.initrd,
		"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 tsc_early_khz=%d tsc=reliable rdinit=/init", hostKHz(t)),
		"-drive", "id=d0,file="+m.disk+",format=raw,if=none,cache=unsafe", "-device", "virtio-blk-pci,drive=d0",
		"-drive", "id=d1,file="+m.work+",format=raw,if=none,cache=unsafe,discard=unmap", "-device", "virtio-blk-pci,drive=d1",
		"-serial", "file:"+m.console, "-serial", "stdio")
}

// hostKHz returns the rate of the host's time-stamp counter, which the guest sees
// too; a kernel that has to measure it may hang. BogoMIPS is twice the rate in MHz.
func hostKHz(t *testing.T) int {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	testkit.Must(t, err)
	match := regexp.MustCompile(`(?m)^bogomips\s*:\s*([0-9.]+)$`).FindSubmatch(info)
	if match == nil {
		t.Fatal("no bogomips in /proc/cpuinfo")
	}
	mips, err := strconv.ParseFloat(string(match[1]), 64)
	testkit.Must(t, err)
	return int(mips * 500)
}

// run boots L1 and passes every line of the results to see. It returns when L1 is
// off, and fails the test when the plan was not completed.
func (m machine) run(t *testing.T, see func(line string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), machineLimit)
	defer cancel()
	cmd := m.command(ctx, t)
	var complaints bytes.Buffer // QEMU always prints some warnings about the processor
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	testkit.Must(t, err)
	in, err := cmd.StdinPipe() // the port of the results, which Wait closes
	testkit.Must(t, err)
	testkit.Must(t, cmd.Start())
	go poke(in)
	whole := false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, l1.Fault) {
			t.Error(line)
		}
		whole = whole || strings.HasPrefix(line, l1.Done)
		see(line)
	}
	err = cmd.Wait()
	if !whole {
		t.Errorf("L1 ended before its plan (QEMU: %v, %v; %v)\n%s\nits console's last lines:\n%s",
			err, lines.Err(), context.Cause(ctx), complaints.String(), tail(m.console, 4096))
	}
}

// poke writes to port until it is closed.
func poke(port io.Writer) {
	for range time.Tick(pokeEvery) {
		if _, err := port.Write([]byte{0}); err != nil {
			return
		}
	}
}

// tail returns the end of a file.
func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-n):])
}

// writeDisk makes an ext4 image of the directory root with the plan in it.
func writeDisk(t *testing.T, path, root string, plan l1.Plan) {
	t.Helper()
	data, err := json.MarshalIndent(plan, "", "\t")
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(filepath.Join(root, l1.PlanPath), data, 0o644))
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "etc"} {
		testkit.Must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	output(t, "", "mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0,lazy_itable_init=1,nodiscard",
		"-d", root, path, "4G")
}

// writeWork makes an empty XFS, sparse.
func writeWork(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	testkit.Must(t, err)
	defer f.Close()
	testkit.Must(t, f.Truncate(16<<30))
	output(t, "", "mkfs.xfs", "-q", "-m", "reflink=1", path)
}
