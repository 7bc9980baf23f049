package service_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/cli/service"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/packaging"
)

// fakeSystemd records what it is asked, and knows which units are active.
type fakeSystemd struct {
	asked  []string
	active map[string]bool
	fail   string // a verb
}

func (f *fakeSystemd) ctl(_ context.Context, args ...string) (string, error) {
	verb, unit := args[0], args[len(args)-1]
	if verb == f.fail {
		return "the reason", errors.New("exit status 1")
	}
	switch verb {
	case "is-active":
		if !f.active[unit] {
			return "", errors.New("exit status 3")
		}
		return "", nil
	case "cat":
		if unit != service.Unit {
			return "", errors.New("exit status 1")
		}
		return "", nil
	case "start":
		f.active[unit] = true
	case "disable":
		f.active[unit] = false
	}
	f.asked = append(f.asked, strings.Join(args, " "))
	return "", nil
}

func places(t *testing.T) (service.Places, *fakeSystemd) {
	t.Helper()
	f := &fakeSystemd{active: map[string]bool{}}
	root := t.TempDir()
	testkit.Must(t, os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755))
	return service.Places{Root: root, Systemctl: f.ctl}, f
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	return string(text)
}

func TestInstallAndUninstall(t *testing.T) {
	p, systemd := places(t)
	quiet := func(string) {}
	unit := filepath.Join(p.Root, "etc/systemd/system/wrenn.service")
	for range 2 { // again is harmless
		testkit.Must(t, p.Install(t.Context(), "/opt/wrenn/bin/wrenn", quiet))
		if text := read(t, unit); !strings.Contains(text, "\nExecStart=/opt/wrenn/bin/wrenn up --settings") || strings.Contains(text, "=/usr/bin/") {
			t.Errorf("the unit runs another program:\n%s", text)
		}
		if got := read(t, p.Settings()); !strings.HasPrefix(got, packaging.Settings) {
			t.Errorf("settings:\n%s", got)
		}
		testkit.Must(t, os.WriteFile(p.Settings(), []byte(packaging.Settings+"# mine\n"), 0o600))
	}
	if got := read(t, p.Settings()); !strings.HasSuffix(got, "# mine\n") {
		t.Error("settings of the administrator were overwritten")
	}
	if diff := cmp.Diff([]string{
		"daemon-reload", "enable --quiet wrenn.service", "start wrenn.service",
		"daemon-reload", "enable --quiet wrenn.service",
	}, systemd.asked); diff != "" {
		t.Errorf("systemctl (-want +got):\n%s", diff)
	}

	systemd.asked = nil
	paused := 0
	for range 2 {
		testkit.Must(t, p.Uninstall(t.Context(), func(context.Context) error { paused++; return nil }, quiet))
	}
	if _, err := os.Stat(unit); err == nil || paused != 2 || systemd.active[service.Unit] {
		t.Errorf("after uninstall: unit %v, paused %d, active %v", err, paused, systemd.active)
	}
	read(t, p.Settings()) // stays
}

// A unit of a package runs the package's program and no other.
func TestInstallFromPackage(t *testing.T) {
	p, _ := places(t)
	dir := filepath.Join(p.Root, "lib/systemd/system")
	testkit.Must(t, os.MkdirAll(dir, 0o755))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, service.Unit), []byte(packaging.Unit), 0o600))
	testkit.Must(t, p.Install(t.Context(), "/usr/bin/wrenn", func(string) {}))
	if _, err := os.Stat(filepath.Join(p.Root, "etc/systemd/system", service.Unit)); err == nil {
		t.Error("a second unit was written, which a new package would not change")
	}
}

func TestInstallSaysWhyNot(t *testing.T) {
	never := func(string) {}
	if err := (service.Places{Root: t.TempDir()}).Install(t.Context(), "/usr/bin/wrenn", never); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("without systemd: %v", err)
	}
	p, systemd := places(t)
	systemd.active["wrenn-host-agent.service"] = true
	if err := p.Install(t.Context(), "/usr/bin/wrenn", never); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "wrenn-host-agent") {
		t.Errorf("beside its own parts: %v", err)
	}
	p, systemd = places(t)
	systemd.fail = "start"
	if err := p.Install(t.Context(), "/usr/bin/wrenn", never); err == nil || !strings.Contains(err.Error(), "journalctl") {
		t.Errorf("a start that fails: %v", err)
	}
	// What cannot be paused is not removed.
	p, _ = places(t)
	testkit.Must(t, p.Install(t.Context(), "/opt/wrenn", never))
	if err := p.Uninstall(t.Context(), func(context.Context) error { return errors.New("full disk") }, never); err == nil || !strings.Contains(err.Error(), "full disk") {
		t.Errorf("Uninstall() = %v", err)
	}
	read(t, filepath.Join(p.Root, "etc/systemd/system", service.Unit))
}
