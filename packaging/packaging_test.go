// Package packaging_test looks at the files that a package of the distribution installs.
package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// programs are what the units run, each in a unit of its name.
var programs = []string{"wrenn", "wrenn-host-agent", "wrenn-control-plane"}

// needed returns the path of a program, or skips the test; in CI it fails.
func needed(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("WRENN_CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(program + " is not installed")
	}
	return path
}

// install copies the units to a directory, with programs where they look for them.
func install(t *testing.T) (units []string) {
	t.Helper()
	dir := t.TempDir()
	for _, program := range programs {
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("*.service")
	if err != nil || len(files) != len(programs) {
		t.Fatalf("units: %v, %v", files, err)
	}
	files = append(files, "wrenn.slice")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, file)
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "=/usr/bin/", "="+dir+"/")), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	return units
}

// systemd knows every key and value of the units.
func TestUnitsAreValid(t *testing.T) {
	analyze := needed(t, "systemd-analyze")
	out, err := exec.CommandContext(t.Context(), analyze, append([]string{"verify", "--man=no"}, install(t)...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// A unit that fails is started again for as long as it takes: five quick failures, such
// as those while a database starts, do not end it.
func TestUnitsNeverGiveUp(t *testing.T) {
	for _, program := range programs {
		text, err := os.ReadFile(program + ".service")
		if err != nil {
			t.Fatal(err)
		}
		unit, service, _ := strings.Cut(string(text), "[Service]")
		for part, want := range map[string]string{unit: "StartLimitIntervalSec=0", service: "Restart=always"} {
			if !strings.Contains(part, "\n"+want+"\n") {
				t.Errorf("%s.service: no line %s in its section", program, want)
			}
		}
	}
}

// What the control plane may do is bounded, and stays so. The agent's exposure
// is what it is: see its unit.
func TestTheControlPlaneIsConfined(t *testing.T) {
	analyze := needed(t, "systemd-analyze")
	for _, unit := range install(t) {
		if !strings.Contains(unit, "control-plane") {
			continue
		}
		// 0 to 100; 16 when this was written.
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--threshold=20", unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security: %v\n%s", err, out)
		}
	}
}

// The files speak of the same users and the same socket.
func TestFilesFitTogether(t *testing.T) {
	text := map[string]string{}
	for _, name := range []string{"host-agent.toml", "control-plane.toml", "wrenn-control-plane.service", "wrenn.sysusers"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text[name] = string(data)
	}
	for name, wants := range map[string][]string{
		"host-agent.toml":             {`#listen = "unix:/run/wrenn/agent.sock"`, `socket_group = "wrenn-agent"`},
		"control-plane.toml":          {`url = "unix:///run/wrenn/agent.sock"`},
		"wrenn-control-plane.service": {"User=wrenn\n", "SupplementaryGroups=wrenn-agent\n"},
		"wrenn.sysusers":              {`u wrenn\s`, `g wrenn-agent\s`},
	} {
		for _, want := range wants {
			if !regexp.MustCompile(`(?m)^` + want).MatchString(text[name]) {
				t.Errorf("%s has no line %q", name, want)
			}
		}
	}
}
