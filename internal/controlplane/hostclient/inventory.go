package hostclient

import (
	"context"
	"fmt"
	"time"

	"wrenn"
	"wrenn/internal/plain"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// maxText bounds texts that a host passes on from who knows where.
const maxText = 1 << 10

var states = map[hostagentv1.SandboxStatus]wrenn.ObservedState{
	hostagentv1.SandboxStatus_SANDBOX_STATUS_STARTING:    wrenn.ObservedStarting,
	hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING:     wrenn.ObservedRunning,
	hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED:      wrenn.ObservedPaused,
	hostagentv1.SandboxStatus_SANDBOX_STATUS_STOPPING:    wrenn.ObservedStopping,
	hostagentv1.SandboxStatus_SANDBOX_STATUS_STOPPED:     wrenn.ObservedStopped,
	hostagentv1.SandboxStatus_SANDBOX_STATUS_FAILED:      wrenn.ObservedFailed,
	hostagentv1.SandboxStatus_SANDBOX_STATUS_QUARANTINED: wrenn.ObservedQuarantined,
}

// Inventory returns everything that the host has, whole or not at all.
func (c *Client) Inventory(ctx context.Context) (wrenn.Inventory, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListSandboxes, &hostagentv1.ListSandboxesRequest{})
	if err != nil {
		return wrenn.Inventory{}, err
	}
	inv := wrenn.Inventory{Host: c.id, Instance: clean(res.GetInstance())}
	for _, info := range res.GetSandboxes() {
		inv.Sandboxes = append(inv.Sandboxes, seen(info))
	}
	return inv, nil
}

func seen(info *hostagentv1.SandboxInfo) wrenn.ObservedSandbox {
	state, known := states[info.GetStatus()]
	if !known {
		state = wrenn.ObservedUnknown
	}
	id, err := wrenn.ParseSandboxID(info.GetSandboxId())
	if err != nil {
		// A host may find things with strange names: they are shown to a person, in quotes, and match no row.
		id = wrenn.SandboxID(fmt.Sprintf("%.60q", info.GetSandboxId()))
	}
	return wrenn.ObservedSandbox{
		ID: id, State: state, Reason: clean(info.GetReason()), Template: clean(info.GetTemplate()),
		Size:      wrenn.Size{VCPUs: int(info.GetVcpus()), MemoryMiB: int(info.GetMemoryMb())},
		EndOfLife: wrenn.EndOfLife{Timeout: time.Duration(info.GetTimeoutSec()) * time.Second},
		CreatedAt: time.Unix(info.GetCreatedAtUnix(), 0).UTC(), LastActiveAt: time.Unix(info.GetLastActiveAtUnix(), 0).UTC(),
		Version: info.GetVersion(),
	}
}

// clean makes a text fit for a database and a terminal.
func clean(s string) string {
	return plain.Cut(plain.Text(plain.Cut(s, maxText)), maxText) // Text may make it longer
}
