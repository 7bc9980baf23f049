package service

import (
	"context"

	"wrenn.dev/internal/controlplane/postgres"
)

// Changer says who can change a limit.
type Changer string

// Those who change limits.
const (
	ByConfiguration Changer = "configuration" // the operator, for all teams
	ByTeam          Changer = "team"          // the operator, who has set it for the team
	Fixed           Changer = "fixed"
)

// TeamLimit is a limit of a team or of each of its sandboxes.
type TeamLimit struct {
	Name      string
	OfSandbox bool // of each sandbox, not of all together
	Allowed   float64
	Used      *int64 // nil when it has no meaning or is not counted
	Unit      string // "" for a number of things
	ChangedBy Changer
	Setting   string // what is changed
}

// Limits returns the limits of the caller's team.
func (s *Accounts) Limits(ctx context.Context, c Caller) ([]TeamLimit, error) {
	has, own, err := s.store.Holdings(ctx, c.Team, s.limits.Limits)
	if err != nil {
		return nil, err
	}
	l := s.limits
	sandboxes := ofTeam("sandboxes", own.Sandboxes, &has.Sandboxes, "", "limits.sandboxes")
	memory := ofTeam("memory", own.TeamMemoryMB, &has.MemoryMiB, "MiB", "limits.team_memory_mb")
	if has.OwnSandboxes {
		sandboxes.ChangedBy, sandboxes.Setting = ByTeam, "max_sandboxes"
	}
	if has.OwnMemory {
		memory.ChangedBy, memory.Setting = ByTeam, "max_memory_mb"
	}
	keys := ofTeam("keys", postgres.MaxKeys, &has.Keys, "", "")
	rate := ofTeam("requests_per_second", 0, nil, "", "limits.requests_per_second")
	rate.Allowed = l.RequestsPerSecond
	return []TeamLimit{
		sandboxes, memory,
		ofTeam("templates", own.Templates, &has.Templates, "", "limits.templates"),
		ofTeam("builds_at_once", own.Builds, &has.Builds, "", "limits.builds"),
		ofTeam("volumes", own.Volumes, &has.Volumes, "", "limits.volumes"),
		ofTeam("volume_size", own.TeamVolumeMiB, &has.VolumeMiB, "MiB", "limits.team_volume_mib"),
		ofTeam("secrets", own.Secrets, &has.Secrets, "", "limits.secrets"), keys, rate,
		ofTeam("request_burst", l.RequestBurst, nil, "", "limits.request_burst"),
		ofTeam("open_requests", l.OpenRequests, nil, "", "limits.open_requests"),
		ofSandbox("vcpus", l.VCPUs, "", "limits.vcpus"),
		ofSandbox("sandbox_memory", l.MemoryMB, "MiB", "limits.memory_mb"),
		ofSandbox("disk", l.DiskMB, "MiB", "limits.disk_mb"),
		ofSandbox("timeout", int(l.Timeout.Seconds()), "s", ""),
		ofSandbox("command_timeout", int(l.ExecTimeout.Seconds()), "s", ""),
		ofSandbox("metadata_pairs", maxMetadata, "", ""),
	}, nil
}

// ofTeam returns a limit of all of a team; without a setting it is fixed.
func ofTeam(name string, allowed int, used *int64, unit, setting string) TeamLimit {
	l := TeamLimit{Name: name, Allowed: float64(allowed), Used: used, Unit: unit, ChangedBy: ByConfiguration, Setting: setting}
	if setting == "" {
		l.ChangedBy = Fixed
	}
	return l
}

// ofSandbox is ofTeam for each sandbox.
func ofSandbox(name string, allowed int, unit, setting string) TeamLimit {
	l := ofTeam(name, allowed, nil, unit, setting)
	l.OfSandbox = true
	return l
}
