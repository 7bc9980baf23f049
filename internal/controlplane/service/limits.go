package service

import (
	"cmp"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
)

const (
	minMemoryMB  = 64 // less does not boot
	maxMetadata  = 64
	maxKeyLen    = 128
	maxValueLen  = 1 << 10
	maxPath      = 4095 // PATH_MAX without its NUL
	maxUser      = 255
	maxArguments = 10_000
)

// Limits bound a team, by default to 100 sandboxes, 256 GiB of memory, 100
// templates, 4 builds, 100 volumes of 1 TiB together and 100 secrets, and each of its sandboxes.
type Limits struct {
	postgres.Limits
	VCPUs       int           // default 8
	MemoryMB    int           // default 16384
	DiskMB      int           // default 20480
	Timeout     time.Duration // default 30 days
	ExecTimeout time.Duration // of one command; default 24 h

	// These only show what package admission allows, with the same defaults.
	RequestsPerSecond          float64
	RequestBurst, OpenRequests int
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Limits: postgres.Limits{
			Sandboxes: cmp.Or(l.Sandboxes, 100), TeamMemoryMB: cmp.Or(l.TeamMemoryMB, 256<<10),
			Templates: cmp.Or(l.Templates, 100), Builds: cmp.Or(l.Builds, 4),
			Volumes: cmp.Or(l.Volumes, 100), TeamVolumeMiB: cmp.Or(l.TeamVolumeMiB, 1<<20), Secrets: cmp.Or(l.Secrets, 100),
		},
		VCPUs: cmp.Or(l.VCPUs, 8), MemoryMB: cmp.Or(l.MemoryMB, 16<<10), DiskMB: cmp.Or(l.DiskMB, 20<<10),
		Timeout: cmp.Or(l.Timeout, 30*24*time.Hour), ExecTimeout: cmp.Or(l.ExecTimeout, 24*time.Hour),
		RequestsPerSecond: cmp.Or(l.RequestsPerSecond, 500), RequestBurst: cmp.Or(l.RequestBurst, 1000), OpenRequests: cmp.Or(l.OpenRequests, 1000),
	}
}

// timeout returns the timeout of a row for that of a request: below zero is
// never, which a row has as 0; zero is the default, and Invalid if there is none.
func (l Limits) timeout(d, byDefault time.Duration) (time.Duration, error) {
	switch {
	case d < 0:
		return 0, nil
	case d > l.Timeout:
		return 0, wrenn.Errorf(wrenn.Invalid, "a timeout is at most %v, or below zero for none", l.Timeout)
	case d > 0:
		return d, nil
	case byDefault > 0:
		return byDefault, nil
	}
	return 0, wrenn.Errorf(wrenn.Invalid, "a timeout is more than 0 s, or below zero for none")
}

func (l Limits) checkSize(size wrenn.Size) error {
	switch {
	case size.VCPUs < 1 || size.VCPUs > l.VCPUs:
		return wrenn.Errorf(wrenn.Invalid, "a sandbox has 1 to %d vCPUs, not %d: ask for fewer, or have the operator raise limits.vcpus of the control plane", l.VCPUs, size.VCPUs)
	case size.MemoryMiB < minMemoryMB || size.MemoryMiB > l.MemoryMB:
		return wrenn.Errorf(wrenn.Invalid, "a sandbox has %d to %d MB of memory, not %d: ask for less, or have the operator raise limits.memory_mb of the control plane", minMemoryMB, l.MemoryMB, size.MemoryMiB)
	}
	return nil
}

// checkDisk checks a disk, or a part of one that is to be free, of that many MiB; 0 asks for nothing.
func (l Limits) checkDisk(mib int) error {
	if mib < 0 || mib > l.DiskMB {
		return wrenn.Errorf(wrenn.Invalid, "a sandbox's disk has at most %d MiB, not %d: ask for less, or have the operator raise limits.disk_mb of the control plane", l.DiskMB, mib)
	}
	return nil
}

func (l Limits) checkCommand(cmd wrenn.ExecCommand) error {
	if cmd.Cmd == "" || len(cmd.Cmd) > maxPath || len(cmd.Args) > maxArguments {
		return wrenn.Errorf(wrenn.Invalid, "a command has a name and at most %d arguments", maxArguments)
	}
	for _, word := range append([]string{cmd.Cmd, cmd.Cwd, cmd.User}, cmd.Args...) {
		if !wrenn.IsText(word) {
			return wrenn.Errorf(wrenn.Invalid, "invalid text %.40q in a command: use UTF-8 without NUL", word)
		}
	}
	if cmd.Timeout < 0 || cmd.Timeout > l.ExecTimeout {
		return wrenn.Errorf(wrenn.Invalid, "a command's timeout is 0 to %v", l.ExecTimeout)
	}
	return wrenn.CheckEnv(cmd.Env)
}

func checkName(what, name string) error {
	const most = 100
	if strings.TrimSpace(name) != name || name == "" || len(name) > most || !wrenn.IsText(name) {
		return wrenn.Errorf(wrenn.Invalid, "the name of a %s is 1 to %d characters, without spaces around it", what, most)
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadata {
		return wrenn.Errorf(wrenn.Invalid, "a sandbox has at most %d pairs of metadata, not %d", maxMetadata, len(m))
	}
	for k, v := range m {
		if k == "" || len(k) > maxKeyLen || len(v) > maxValueLen || !wrenn.IsText(k) || !wrenn.IsText(v) {
			return wrenn.Errorf(wrenn.Invalid, "metadata %.40q: a key is text of 1 to %d bytes, a value of at most %d", k, maxKeyLen, maxValueLen)
		}
	}
	return nil
}

func checkFile(user, path string) error {
	if path == "" || len(path) > maxPath || !wrenn.IsText(path) {
		return wrenn.Errorf(wrenn.Invalid, "a path is UTF-8 of 1 to %d bytes", maxPath)
	}
	if len(user) > maxUser || !wrenn.IsText(user) {
		return wrenn.Errorf(wrenn.Invalid, "invalid user name %.40q", user)
	}
	return nil
}
