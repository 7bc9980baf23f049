package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
)

const (
	// bootTime bounds the boot, also on a busy machine.
	bootTime  = 10 * time.Minute
	callTime  = 2 * time.Minute
	agentPort = 49983
	// commandLine has the address of QEMU's network of a user.
	commandLine = "root=/dev/vda rw ip=10.0.2.15::10.0.2.2:255.255.255.0:sandbox:eth0:off init=/usr/local/bin/wrenn-init console=ttyAMA0 quiet panic=-1"
)

// use boots the guest and uses its agent as a host does.
func use(ctx context.Context, tree string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	kernels, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("want one kernel in %s, found %d", tree, len(kernels))
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	machine, err := start(ctx, tree, kernels[0], address)
	if err != nil {
		return err
	}
	defer machine.end()
	agent := envdclient.New(envdclient.Config{Dial: new(net.Dialer).DialContext, Address: address})
	defer agent.Close()
	began := time.Now()
	if err := agent.WaitReady(ctx, machine.wait); err != nil {
		return fmt.Errorf("%w; the console:\n%s", err, machine.console())
	}
	fmt.Printf("  the agent answers after %.1f s\n", time.Since(began).Seconds())
	return talk(ctx, agent)
}

// freeAddress returns an address of this machine on which nothing listens.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// machine is a QEMU that runs.
type machine struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error // after ended
}

// start starts QEMU with a guest whose agent answers at address.
func start(ctx context.Context, tree, kernel, address string) (*machine, error) {
	m := &machine{log: beside(tree, "console"), ended: make(chan struct{})}
	m.cmd = exec.CommandContext(ctx, "qemu-system-aarch64",
		"-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "file:"+m.log,
		"-kernel", kernel, "-initrd", beside(tree, "initrd"), "-append", commandLine,
		"-drive", "if=none,id=disk0,format=raw,file="+beside(tree, "disk"), "-device", "virtio-blk-device,drive=disk0",
		"-netdev", fmt.Sprintf("user,id=net0,restrict=on,hostfwd=tcp:%s-:%d", address, agentPort), "-device", "virtio-net-device,netdev=net0",
		"-device", "virtio-rng-device")
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.ended)
	}()
	return m, nil
}

// wait returns when the machine has ended.
func (m *machine) wait(ctx context.Context) error {
	select {
	case <-m.ended:
		return errors.Join(errors.New("the machine has ended"), m.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *machine) end() {
	_ = m.cmd.Process.Kill() // it may have ended
	<-m.ended
}

func (m *machine) console() string {
	text, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// talk makes the calls of a create, of commands and of a pause.
func talk(ctx context.Context, agent *envdclient.Client) error {
	id := envdclient.Identity{ID: "iabcdefghijklmnopqrst", StartCounter: 1}
	if err := agent.Init(ctx, envdclient.Init{Env: map[string]string{"A": "b"}, User: "user", Identity: &id}); err != nil {
		return err
	}
	for command, want := range map[string]string{
		"uname -m": "aarch64",
		`echo "$A" "$(id -un)" "$(cat /proc/sys/kernel/hostname)"`: "b user " + id.ID,
		"cat /proc/1/comm":                    "tini",
		"cat /proc/sys/kernel/pid_max":        "4194304",
		"stat -fc %T /sys/fs/cgroup /dev/shm": "cgroup2fs\ntmpfs",
		"test -c /dev/fuse && echo yes":       "yes",
	} {
		if err := run(ctx, agent, command, want); err != nil {
			return err
		}
	}
	content := bytes.Repeat([]byte("arm64"), 1<<18)
	if err := agent.WriteFile(ctx, "user", "big", bytes.NewReader(content)); err != nil {
		return err
	}
	back, err := agent.ReadFile(ctx, "user", "big")
	if err != nil {
		return err
	}
	defer back.Close()
	if got, err := io.ReadAll(back); err != nil || !bytes.Equal(got, content) {
		return fmt.Errorf("a file of %d bytes came back as %d: %w", len(content), len(got), err)
	}
	if err := errors.Join(agent.Freeze(ctx), agent.Thaw(ctx)); err != nil {
		return err
	}
	return run(ctx, agent, "echo after a freeze", "after a freeze")
}

func run(ctx context.Context, agent *envdclient.Client, command, want string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	result, err := agent.Exec(ctx, wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", command}})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	got := strings.TrimSpace(string(result.Stdout))
	if got != want || result.ExitCode != 0 {
		return fmt.Errorf("%s: printed %q and %q, exit code %d; want %q", command, got, result.Stderr, result.ExitCode, want)
	}
	fmt.Printf("  %s: %q\n", command, got)
	return nil
}
