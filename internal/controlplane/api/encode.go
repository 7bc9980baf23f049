package api

import (
	"cmp"
	"net/url"
	"strconv"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
)

// sandbox returns sb as /v1 shows it, without its environment, which has secrets.
func sandbox(sb *wrenn.Sandbox) oapi.Sandbox {
	out := oapi.Sandbox{
		ID: string(sb.ID), Status: oapi.State(sb.State), Template: sb.Template, Vcpus: sb.VCPUs, MemoryMb: sb.MemoryMiB, DiskMb: cmp.Or(sb.DiskMiB, wrenn.DefaultDiskMiB),
		TimeoutSec: int64(sb.Timeout / time.Second), OnTimeout: oapi.OnTimeout(sb.OnTimeout), AutoResume: sb.AutoResume, Metadata: oapi.Metadata(sb.Metadata),
		CreatedAt: sb.CreatedAt.UTC(), StartedAt: moment(sb.StartedAt), LastActiveAt: moment(sb.LastActiveAt), LastUpdated: sb.UpdatedAt.UTC(),
	}
	out.Volumes = mounts(sb.Volumes)
	if out.Metadata == nil {
		out.Metadata = oapi.Metadata{}
	}
	out.Requires = requires(sb.Requires)
	if sb.Parent != "" {
		out.ParentID = new(string(sb.Parent))
	}
	if sb.Absolute && sb.State == wrenn.Running {
		out.EndsAt = moment(sb.EndsAt)
	}
	if !sb.Network.IsZero() {
		out.Network = new(policy(sb.Network))
	}
	if sb.Reason != "" {
		out.Reason = &sb.Reason
	}
	if sb.EndCause != "" {
		out.EndCause = new(oapi.EndCause(sb.EndCause))
	}
	if sb.Stored.Key != "" {
		out.StoredAt = new(sb.Stored.At.UTC())
	}
	if u := sb.Unresponsive; u != nil {
		out.Unresponsive = &oapi.Unresponsive{Since: u.Since.UTC(), Reason: u.Reason}
	}
	if sb.OnHostLoss != "" {
		out.OnHostLoss = new(oapi.OnHostLoss(sb.OnHostLoss))
	}
	if sb.CheckpointEvery > 0 {
		out.CheckpointEverySec = new(int64(sb.CheckpointEvery / time.Second))
	}
	out.CheckpointStoredAt = moment(sb.Newest.Stored.At)
	if sb.Build != "" {
		out.Generation = new(string(sb.Build))
	}
	return out
}

// moment returns t, nil if it is zero.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}

// nextLink returns the Link header with the page after that of params, see RFC 8288.
func nextLink(params oapi.ListSandboxesParams, next string) string {
	query := url.Values{"page": {next}}
	if params.Limit != nil {
		query.Set("limit", strconv.Itoa(*params.Limit))
	}
	for _, state := range value(params.State) {
		query.Add("state", string(state))
	}
	for _, pair := range value(params.Metadata) {
		query.Add("metadata", pair)
	}
	return "</v1/sandboxes?" + query.Encode() + `>; rel="next"`
}
