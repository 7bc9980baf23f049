// Package probe finds out whether a driver really boots the configured kernel on
// this machine. It is not enough that a VMM starts or that a vCPU runs a few
// instructions: under PVM (/sys/module/kvm_pvm) both work and every stock kernel
// hangs before its first line. So the probe boots the kernel itself, waits until
// it has printed something, and stores the result.
package probe

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

const (
	// defaultDeadline is several times what a kernel needs to its first line
	// even where KVM itself is emulated (about 2 s there).
	defaultDeadline = 15 * time.Second
	// pollEvery is the pause between two looks at the console.
	pollEvery = 20 * time.Millisecond
	// maxVerdicts bounds the file of verdicts, in bytes.
	maxVerdicts = 1 << 20
)

// Probe boots kernels. All fields but Deadline are needed.
type Probe struct {
	// Memory is the file that stores verdicts. A new boot of the host, a new
	// kernel or a new VMM needs a new verdict.
	Memory string
	// Dir is where the probe's machine gets its directory; see vm.Spec.Dir.
	Dir string
	// Deadline is how long a kernel may take to its first line; default 15 s.
	Deadline time.Duration
}

// Verdict reports whether a driver boots a kernel on this machine.
type Verdict struct {
	Works  bool   `json:"works"`
	Reason string `json:"reason"` // for people
}

// Boots reports whether driver, whose VMM has the given version, boots kernel on
// this machine. It takes up to the deadline the first time and no time when the
// verdict is stored. It does not store the verdict on a VMM that cannot even be
// started: to try again takes no time, and the host may have been out of memory.
// An error means that there is no verdict.
func (p Probe) Boots(ctx context.Context, driver vm.Driver, version string, kernel vm.Kernel) (Verdict, error) {
	where, err := placeOf(kernel)
	if err != nil {
		return Verdict{}, err
	}
	key := strings.Join([]string{driver.Name(), version, where}, " ")
	verdicts := Stored(p.Memory)
	if v, ok := verdicts[key]; ok {
		return v, nil
	}
	v, started, err := p.boot(ctx, driver, kernel)
	if err != nil {
		return Verdict{}, err
	}
	if !started {
		return v, nil
	}
	// Only the last verdict on each driver is stored: the others are of earlier kernels, VMMs and boots.
	maps.DeleteFunc(verdicts, func(old string, _ Verdict) bool {
		return DriverOf(old) == driver.Name() || !strings.HasSuffix(old, " "+where)
	})
	verdicts[key] = v
	return v, p.store(verdicts)
}

// boot boots the kernel. If started is false the verdict is that of the driver's Start.
func (p Probe) boot(ctx context.Context, driver vm.Driver, kernel vm.Kernel) (v Verdict, started bool, err error) {
	dir, err := os.MkdirTemp(p.Dir, "probe")
	if err != nil {
		return v, false, err
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	undo.Add(func(context.Context) error { return os.RemoveAll(dir) })
	// Without a disk the kernel cannot get far; ignore_loglevel makes it print what it does.
	kernel.Args = append([]string{"ignore_loglevel"}, kernel.Args...)
	// The name is new each time: the machine of a probe that was killed may still have the old one.
	machine, err := driver.Start(ctx, vm.Spec{ID: filepath.Base(dir), Dir: dir, VCPUs: 1, MemoryMiB: 128, Kernel: kernel})
	if err != nil {
		if ctx.Err() != nil {
			return v, false, err
		}
		return Verdict{Reason: err.Error()}, false, nil
	}
	undo.Add(machine.Stop)
	console, ok := machine.(vm.ConsoleReader)
	if !ok {
		return v, false, fmt.Errorf("probe: driver %s shows no console", driver.Name())
	}
	v, err = p.watch(ctx, machine, console)
	return v, true, err
}

// watch returns when the guest has printed something, the machine has ended or the deadline is over.
func (p Probe) watch(ctx context.Context, machine vm.Machine, console vm.ConsoleReader) (Verdict, error) {
	limit := cmp.Or(p.Deadline, defaultDeadline)
	deadline, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	gone := make(chan error, 1)
	go func() { gone <- machine.Wait(deadline) }()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var end error
		over := false
		select {
		case <-tick.C:
		case end = <-gone:
			over = true
		}
		// The console comes last: what was printed in the last moment counts.
		switch printed := strings.TrimSpace(console.Console()) != ""; {
		case printed:
			return Verdict{Works: true, Reason: "the guest kernel booted"}, nil
		case ctx.Err() != nil:
			return Verdict{}, context.Cause(ctx)
		case over && deadline.Err() != nil:
			return Verdict{Reason: fmt.Sprintf("the guest kernel printed nothing within %s", limit)}, nil
		case over:
			return Verdict{Reason: fmt.Sprintf("the VMM ended before the guest kernel printed anything: %v", end)}, nil
		}
	}
}

// Stored returns the verdicts in the file memory by their keys, of which DriverOf
// returns the driver; none if it cannot be read: to probe again costs seconds, not
// correctness.
func Stored(memory string) map[string]Verdict {
	verdicts := map[string]Verdict{}
	f, err := os.Open(memory)
	if err != nil {
		return verdicts
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxVerdicts))
	if err != nil || json.Unmarshal(data, &verdicts) != nil || verdicts == nil {
		return map[string]Verdict{}
	}
	return verdicts
}

// DriverOf returns the name of the driver that a verdict of Stored is on.
func DriverOf(key string) string {
	name, _, _ := strings.Cut(key, " ")
	return name
}

func (p Probe) store(verdicts map[string]Verdict) error {
	data, err := json.MarshalIndent(verdicts, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(p.Memory, append(data, '\n'), 0o600)
}

// placeOf returns everything that a verdict depends on besides the driver and its
// version: the kernel, and the boot of the host.
func placeOf(kernel vm.Kernel) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	f, err := os.Open(kernel.Image)
	if err != nil {
		return "", &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest kernel cannot be read", Err: err}
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read kernel: %w", err)
	}
	return "kernel-" + hex.EncodeToString(sum.Sum(nil)[:8]) + " boot-" + strings.TrimSpace(string(boot)), nil
}
