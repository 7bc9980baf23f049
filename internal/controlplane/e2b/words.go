package e2b

import (
	"cmp"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
)

// envdVersion turns on the features of clients; envd speaks this version's protocol.
const envdVersion = "0.6.13"

// clientID is a field that every client needs and none uses.
const clientID = "wrenn"

// Timeouts of a sandbox that was created without one.
const (
	v1Timeout = 15 * time.Second
	v2Timeout = 5 * time.Minute
)

// refuseUnbuilt returns an error that names the field that asks for what is not built.
func refuseUnbuilt(n *oapi.NewSandbox) error {
	if len(n.Iam) > 0 {
		return invalid("iam is not built yet; docs/e2b.md lists what works")
	}
	return nil
}

// onTimeoutOf returns what happens to a new sandbox at its end.
func onTimeoutOf(n *oapi.NewSandbox) (wrenn.OnTimeout, error) {
	switch {
	case without(n.AutoPauseMemory) && !n.AutoPause:
		return "", invalid("autoPauseMemory: false needs autoPause: true")
	case without(n.AutoPauseMemory) && n.AutoResume != nil && n.AutoResume.Enabled:
		return "", invalid("autoPauseMemory: false and autoResume exclude each other: a sandbox without memory is resumed by connect alone")
	case without(n.AutoPauseMemory):
		return wrenn.PauseDiskOnTimeout, nil
	case n.AutoPause:
		return wrenn.PauseOnTimeout, nil
	}
	return wrenn.DestroyOnTimeout, nil
}

func detailOf(sb *wrenn.Sandbox, token string, ingress wrenn.Ingress) oapi.SandboxDetail {
	l := listedOf(sb)
	onTimeout := oapi.LifecycleOnTimeoutKill
	if sb.OnTimeout.Pauses() {
		onTimeout = oapi.LifecycleOnTimeoutPause
	}
	return oapi.SandboxDetail{
		TemplateID: l.TemplateID, Alias: l.Alias, SandboxID: l.SandboxID, ClientID: l.ClientID, StartedAt: l.StartedAt, EndAt: l.EndAt,
		CPUCount: l.CPUCount, MemoryMB: l.MemoryMB, DiskSizeMB: l.DiskSizeMB, Metadata: l.Metadata, State: l.State, EnvdVersion: l.EnvdVersion, VolumeMounts: l.VolumeMounts,
		EnvdAccessToken: token, Lifecycle: oapi.Lifecycle{AutoResume: sb.AutoResume, OnTimeout: onTimeout},
		AllowInternetAccess: !sb.Network.DenyByDefault, Network: networkOf(sb.Network, ingress),
	}
}

// diskSize returns the size of a disk in MiB, where 0 is the default.
func diskSize(mib int) int { return cmp.Or(mib, wrenn.DefaultDiskMiB) }

// noEnd is the end of a sandbox that has none, as far as clients can count.
const noEnd = 100 * 365 * 24 * time.Hour

func listedOf(sb *wrenn.Sandbox) oapi.ListedSandbox {
	metadata := oapi.Metadata(sb.Metadata)
	if metadata == nil {
		metadata = oapi.Metadata{}
	}
	return oapi.ListedSandbox{
		TemplateID: sb.Template, Alias: sb.Template, SandboxID: string(sb.ID), ClientID: clientID,
		StartedAt: orCreated(sb.StartedAt, sb), EndAt: endOf(sb),
		CPUCount: sb.VCPUs, MemoryMB: sb.MemoryMiB, DiskSizeMB: diskSize(sb.DiskMiB),
		Metadata: metadata, State: stateOf(sb), EnvdVersion: envdVersion, VolumeMounts: mountsOf(sb.Volumes),
	}
}

func orCreated(t time.Time, sb *wrenn.Sandbox) time.Time {
	if t.IsZero() {
		return sb.CreatedAt
	}
	return t
}

// endOf is when the sandbox ends, if it is not used any more unless its timeout is
// absolute; for a paused one the time of the pause.
func endOf(sb *wrenn.Sandbox) time.Time {
	switch {
	case sb.State == wrenn.Paused:
		return sb.UpdatedAt
	case sb.Absolute && !sb.EndsAt.IsZero():
		return sb.EndsAt
	case sb.Timeout == 0:
		return orCreated(sb.LastActiveAt, sb).Add(noEnd)
	}
	return orCreated(sb.LastActiveAt, sb).Add(sb.Timeout)
}

// stateOf returns one of the two states that clients know.
func stateOf(sb *wrenn.Sandbox) oapi.SandboxState {
	if sb.State == wrenn.Paused || sb.State == wrenn.Pausing {
		return oapi.Paused
	}
	return oapi.Running
}

// lives reports whether clients see the sandbox.
func lives(sb *wrenn.Sandbox) bool { return !sb.State.Ended() && sb.State != wrenn.Stopping }
