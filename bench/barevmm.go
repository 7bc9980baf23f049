package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wrenn.dev/internal/image"
	"wrenn.dev/internal/vm/qemu"
	"wrenn.dev/internal/vm/qemu/qmp"
)

// bareVMM is a QEMU with the driver's devices but without the driver: the limit
// for operations that stop a guest.
type bareVMM struct {
	cmd *exec.Cmd
	qmp *qmp.Client
	dir string
}

// bootTime is how long a bare guest gets to set up its devices.
const bootTime = 10 * time.Second

// startBareVMM boots the guest with bareagent in it; the caller closes it.
func startBareVMM(ctx context.Context, b *bench) (*bareVMM, error) {
	guest, err := image.Prepare(ctx, image.Config{StateDir: "/var/lib/wrenn", Out: os.Stderr, Envd: "bin/envd", Stage0: "bin/stage0"})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "v")
	if err != nil {
		return nil, err
	}
	if guest, err = bareGuest(ctx, dir, guest); err != nil {
		return nil, err
	}
	v := &bareVMM{dir: dir}
	socket := filepath.Join(dir, "qmp")
	// The devices are those of the driver, because their state is what is saved.
	v.cmd = exec.Command("qemu-system-x86_64", //nolint:noctx // close ends it
		"-M", "microvm,acpi=on,pit=on,pic=off,rtc=on,isa-serial=on", "-cpu", "max", "-smp", "1", "-m", fmt.Sprint(boxMemoryMB),
		"-accel", fmt.Sprint("tcg,thread=multi,tb-size=", qemu.DefaultCodeMiB), "-nodefaults", "-no-user-config", "-display", "none", "-serial", "null",
		"-device", "virtio-rng-device",
		"-drive", "id=disk0,if=none,format=raw,snapshot=on,file="+guest.RootFS, "-device", "virtio-blk-device,drive=disk0",
		"-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-device,netdev=net0",
		"-kernel", guest.Kernel, "-initrd", guest.Initrd, "-append", "console=ttyS0 quiet "+strings.Join(guest.Args, " "),
		"-qmp", "unix:"+socket+",server=on,wait=off")
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	if err := v.connect(ctx, socket); err != nil {
		return nil, fmt.Errorf("bare VMM: %w, %w", err, v.close())
	}
	return v, pause(ctx, bootTime)
}

func (v *bareVMM) close() error {
	if err := v.cmd.Process.Kill(); err != nil {
		return err
	}
	if v.qmp != nil {
		_ = v.qmp.Close() // the other end is gone
	}
	return ignoreExit(v.cmd.Wait())
}

func (v *bareVMM) connect(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			v.qmp, err = qmp.New(ctx, conn.(*net.UnixConn), func(qmp.Event) {})
			return err
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return err
		}
	}
}

// saveState measures how long the guest is stopped while its devices are saved.
func (v *bareVMM) saveState(ctx context.Context) (sample, error) {
	state := filepath.Join(v.dir, "state")
	took, err := timed(func() error {
		if err := v.qmp.Do(ctx, "stop", nil, nil); err != nil {
			return err
		}
		if err := v.qmp.Do(ctx, "xen-save-devices-state", map[string]any{"filename": state, "live": false}, nil); err != nil {
			return err
		}
		return v.qmp.Do(ctx, "cont", nil, nil)
	})
	return sample{took}, err
}
