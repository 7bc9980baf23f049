package client

import (
	"context"
	"iter"
	"net/url"
	"time"
)

// AuditEntry is a call with a key of the team that needed more than to read.
type AuditEntry struct {
	At        time.Time `json:"at"` // when it began
	KeyID     string    `json:"key_id"`
	KeyName   string    `json:"key_name"`
	Address   string    `json:"address"`    // of the client
	RequestID string    `json:"request_id"` // "" for the E2B-compatible API
	Operation string    `json:"operation"`  // as the contract calls it
	Path      string    `json:"path"`
	Status    int       `json:"status"` // of the answer
}

// AuditLog lists the calls of the team's keys that needed more than to read and
// began at since or later, and before until, newest first; a zero time is no bound. It
// requests the next page when the loop reaches it. The loop ends after an error. The
// key needs the scope admin.
func (c *Client) AuditLog(ctx context.Context, since, until time.Time) iter.Seq2[AuditEntry, error] {
	query := url.Values{"limit": {"1000"}}
	for name, at := range map[string]time.Time{"since": since, "until": until} {
		if !at.IsZero() {
			query.Set(name, at.Format(time.RFC3339Nano))
		}
	}
	return pages[AuditEntry](ctx, c, "/v1/audit", query)
}
