// Package service makes "wrenn up" a service of systemd, and removes it. Both may be
// called again at any time. Data, settings and keys are never removed.
package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/packaging"
)

// Unit is the name of the service.
const Unit = "wrenn.service"

const (
	slice    = "wrenn.slice"
	packaged = "/usr/bin/wrenn" // what the package's unit runs
)

// others are the same parts one by one.
var others = []string{"wrenn-control-plane.service", "wrenn-host-agent.service"}

// Places are where files are on the machine; the zero value means the usual ones.
type Places struct {
	Root string // is before every path, for tests; "" is the machine itself
	// Systemctl runs systemctl; nil is the program of that name. Its output is returned
	// also with an error.
	Systemctl func(ctx context.Context, args ...string) (string, error)
}

// Settings is the file with the flags of the service.
func (p Places) Settings() string { return filepath.Join(p.Root, "/etc/wrenn/up.toml") }

// Client is the file with the address and the first key, which the service writes.
func (p Places) Client() string { return filepath.Join(p.Root, "/var/lib/wrenn/client.toml") }

// unitDirs has the directory of units that a package has installed, and that of an
// administrator's, which win.
func (p Places) unitDirs() (ofPackage, own string) {
	return filepath.Join(p.Root, "/lib/systemd/system"), filepath.Join(p.Root, "/etc/systemd/system")
}

func (p Places) systemctl(ctx context.Context, args ...string) (string, error) {
	if p.Systemctl != nil {
		return p.Systemctl(ctx, args...)
	}
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// check returns FailedPrecondition on a machine without systemd.
func (p Places) check() error {
	if _, err := os.Stat(filepath.Join(p.Root, "/run/systemd/system")); err != nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "systemd does not run this machine: have another supervisor run wrenn up, whose SIGTERM keeps sandboxes")
	}
	return nil
}

// Install makes files that do not exist, and enables and starts the service, which
// runs program. It returns when the service is ready for requests: the first start
// makes the guest image, which takes minutes. say gets what was done, a line each.
func (p Places) Install(ctx context.Context, program string, say func(string)) error {
	if err := p.check(); err != nil {
		return err
	}
	for _, unit := range others {
		if _, err := p.systemctl(ctx, "is-active", "--quiet", unit); err == nil {
			return wrenn.Errorf(wrenn.FailedPrecondition, "%s runs already, and is a part of this service: systemctl disable --now %s", unit, strings.Join(others, " "))
		}
	}
	if err := p.writeFiles(program, say); err != nil {
		return err
	}
	if out, err := p.systemctl(ctx, "daemon-reload"); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w: %s", err, out)
	}
	if out, err := p.systemctl(ctx, "enable", "--quiet", Unit); err != nil {
		return fmt.Errorf("enable %s: %w: %s", Unit, err, out)
	}
	say(Unit + " is enabled: it starts with this machine")
	if _, err := p.systemctl(ctx, "is-active", "--quiet", Unit); err == nil {
		say(Unit + " runs already; after a change of " + p.Settings() + ": systemctl restart wrenn")
		return nil
	}
	say("starting " + Unit + "; the first start makes the guest image, which takes minutes: journalctl -fu wrenn shows it")
	if out, err := p.systemctl(ctx, "start", Unit); err != nil {
		return fmt.Errorf("start %s: %w: %s\nIt is tried again every 2 s. The reason: journalctl -u wrenn -n 20", Unit, err, out)
	}
	say(Unit + " runs")
	return nil
}

// writeFiles writes the files of the service that do not exist.
func (p Places) writeFiles(program string, say func(string)) error {
	ofPackage, own := p.unitDirs()
	if _, err := os.Stat(filepath.Join(ofPackage, Unit)); err == nil && program == packaged {
		say("unit      " + filepath.Join(ofPackage, Unit) + ", of the package")
	} else {
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		unit := strings.ReplaceAll(packaging.Unit, "="+packaged+" ", "="+program+" ")
		for name, text := range map[string]string{Unit: unit, slice: packaging.Slice} {
			if err := durable.WriteFile(filepath.Join(own, name), []byte(text), 0o644); err != nil {
				return fmt.Errorf("write %s: %w", name, err)
			}
		}
		say("unit      " + filepath.Join(own, Unit) + ", which runs " + program)
	}
	settings := p.Settings()
	if _, err := os.Stat(settings); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(settings), 0o755); err != nil {
			return err
		}
		if err := durable.WriteFile(settings, []byte(packaging.Settings), 0o640); err != nil {
			return fmt.Errorf("write the settings: %w", err)
		}
	}
	say("settings  " + settings)
	return nil
}

// Uninstall stops and disables Wrenn's services, calls pause, which is to pause the
// sandboxes that still run, and removes what Install wrote, but the settings. When
// pause fails, only the removal is left out.
func (p Places) Uninstall(ctx context.Context, pause func(context.Context) error, say func(string)) error {
	if err := p.check(); err != nil {
		return err
	}
	for _, unit := range append([]string{Unit}, others...) {
		if _, err := p.systemctl(ctx, "cat", unit); err != nil {
			continue // systemd does not know it
		}
		if out, err := p.systemctl(ctx, "disable", "--quiet", "--now", unit); err != nil {
			return fmt.Errorf("stop %s: %w: %s", unit, err, out)
		}
		say(unit + " is stopped and disabled")
	}
	if err := pause(ctx); err != nil {
		return fmt.Errorf("pause the sandboxes that still run: %w", err)
	}
	_, own := p.unitDirs()
	for _, name := range []string{Unit, slice} {
		err := os.Remove(filepath.Join(own, name))
		if err == nil {
			say("removed " + filepath.Join(own, name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	out, err := p.systemctl(ctx, "daemon-reload")
	if err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w: %s", err, out)
	}
	return nil
}
