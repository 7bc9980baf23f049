package api

import (
	"net/url"
	"strconv"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/api/internal/oapi"
)

// sandbox is box as /v1 shows it. Its environment is not shown: that is where secrets are.
func sandbox(box *wrenn.Sandbox) oapi.Sandbox {
	out := oapi.Sandbox{
		ID: string(box.ID), Status: oapi.State(box.State), Template: box.Template, Vcpus: box.VCPUs, MemoryMb: box.MemoryMiB,
		TimeoutSec: int64(box.Timeout / time.Second), OnTimeout: oapi.OnTimeout(box.OnTimeout), AutoResume: box.AutoResume, Metadata: oapi.Metadata(box.Metadata),
		CreatedAt: box.CreatedAt.UTC(), StartedAt: moment(box.StartedAt), LastActiveAt: moment(box.LastActiveAt), LastUpdated: box.UpdatedAt.UTC(),
	}
	if out.Metadata == nil {
		out.Metadata = oapi.Metadata{}
	}
	if box.Parent != "" {
		out.ParentID = new(string(box.Parent))
	}
	if box.Reason != "" {
		out.Reason = &box.Reason
	}
	if box.Generation != "" {
		out.Generation = new(string(box.Generation))
	}
	return out
}

// moment is t, or nothing when it did not come yet.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}

// nextLink is the Link to the page after the one that params asked for, see RFC 8288.
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
