package vmtest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"wrenn.dev"

	"wrenn.dev/internal/envdclient"
)

// EnvdConfig says how to reach the agent of a real guest and how that guest
// is ended.
type EnvdConfig struct {
	// Address is envd's host:port as Place.Dial understands it.
	Address string
	// PowerOff is the letter that /proc/sysrq-trigger gets to end the machine:
	// "o" powers off, "b" reboots, for VMMs whose guests cannot power off.
	PowerOff string
}

// Envd is the Guest of an image with envd and a shell in it.
func Envd(t *testing.T, place Place, cfg EnvdConfig) Guest {
	t.Helper()
	c := envdclient.New(envdclient.Config{Dial: place.Dial, Address: cfg.Address})
	t.Cleanup(c.Close)
	return envdGuest{Client: c, powerOff: cfg.PowerOff}
}

type envdGuest struct {
	*envdclient.Client
	powerOff string
}

const (
	fillBytes = 2 << 20
	memoryDir = "/mnt/vmtest" // a tmpfs
	diskFile  = "/vmtest"
)

// sh runs a script as root and returns what it printed.
func (g envdGuest) sh(ctx context.Context, script string) (string, error) {
	res, err := g.Exec(ctx, wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-ec", script}, User: "root"})
	if err != nil {
		return "", err
	}
	if res.ExitCode != 0 {
		return "", fmt.Errorf("%s: %s: %s", script, res.Status, res.Stderr)
	}
	return strings.TrimSpace(string(res.Stdout)), nil
}

func (g envdGuest) run(ctx context.Context, script string) error {
	_, err := g.sh(ctx, script)
	return err
}

// later runs a script in the background, a moment after its start was answered.
func (g envdGuest) later(ctx context.Context, script string) error {
	return g.run(ctx, fmt.Sprintf("setsid sh -c 'sleep 0.3; %s' </dev/null >/dev/null 2>&1 &", script))
}

// mount makes memoryDir unless it exists.
const mount = "mkdir -p " + memoryDir + "; grep -q ' " + memoryDir + " ' /proc/mounts || mount -t tmpfs none " + memoryDir + "\n"

func (g envdGuest) Fill(ctx context.Context, name string, b byte) error {
	return g.run(ctx, mount+fmt.Sprintf(`head -c %d /dev/zero | tr '\000' '\%03o' | dd of=%s/%s bs=64k conv=notrunc 2>/dev/null`, fillBytes, b, memoryDir, name))
}

func (g envdGuest) Filled(ctx context.Context, name string, b byte) (bool, error) {
	out, err := g.sh(ctx, fmt.Sprintf(`wc -c <%[1]s/%[2]s; tr -d '\%03[3]o' <%[1]s/%[2]s | wc -c`, memoryDir, name, b))
	return strings.Join(strings.Fields(out), " ") == fmt.Sprintf("%d 0", fillBytes), err
}

func (g envdGuest) WriteDisk(ctx context.Context, text string) error {
	return g.run(ctx, fmt.Sprintf("echo %s >%s; sync", text, diskFile))
}

func (g envdGuest) ReadDisk(ctx context.Context) (string, error) { return g.sh(ctx, "cat "+diskFile) }

// StartCounter's process adds a byte to a file: that can be read at any moment.
func (g envdGuest) StartCounter(ctx context.Context) error {
	return g.run(ctx, mount+fmt.Sprintf(": >%[1]s/count; setsid sh -c 'while :; do echo >>%[1]s/count; sleep 1; done' </dev/null >/dev/null 2>&1 &", memoryDir))
}

func (g envdGuest) Counter(ctx context.Context) (int, error) {
	out, err := g.sh(ctx, "wc -c <"+memoryDir+"/count")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

func (g envdGuest) BusyTimer(ctx context.Context) error {
	return g.run(ctx, "timeout 1 sh -c 'while :; do :; done' || [ $? -eq 124 ] || [ $? -eq 143 ]")
}

func (g envdGuest) PrintMuch(ctx context.Context, n int) error {
	return g.run(ctx, fmt.Sprintf("head -c %d /dev/zero | tr '\\000' x >/dev/console", n))
}

func (g envdGuest) Flood(ctx context.Context) error {
	return g.later(ctx, "while :; do echo a line of a flood >/dev/console; done")
}

func (g envdGuest) PowerOff(ctx context.Context) error {
	return g.later(ctx, "echo "+g.powerOff+" >/proc/sysrq-trigger")
}

func (g envdGuest) Panic(ctx context.Context) error {
	return g.later(ctx, "echo c >/proc/sysrq-trigger")
}
