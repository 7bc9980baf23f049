package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Used is what was used in some time. Each amount of seconds is a number of things, or a
// size in MiB, times the seconds for which it was there, also when it was idle.
type Used struct {
	Creates            int64   `json:"creates"` // of sandboxes, copies included
	SandboxSeconds     float64 `json:"sandbox_seconds"`
	PausedSeconds      float64 `json:"paused_seconds"`
	VCPUSeconds        float64 `json:"vcpu_seconds"`         // of running sandboxes
	MemoryMiBSeconds   float64 `json:"memory_mib_seconds"`   // of running sandboxes
	DiskMiBSeconds     float64 `json:"disk_mib_seconds"`     // of running and paused sandboxes
	VolumeMiBSeconds   float64 `json:"volume_mib_seconds"`   // of volumes, by their sizes
	TemplateMiBSeconds float64 `json:"template_mib_seconds"` // of built templates
}

// UsedInStep is what was used in an hour or a day.
type UsedInStep struct {
	From time.Time `json:"from"` // when it begins
	Used
}

// Usage is what a team used over time.
type Usage struct {
	From         time.Time    `json:"from"`
	To           time.Time    `json:"to"`
	Step         string       `json:"step"`          // hour or day, in UTC
	CountedFrom  time.Time    `json:"counted_from"`  // nothing before this was counted
	CountedUntil time.Time    `json:"counted_until"` // nothing after this is counted yet
	Total        Used         `json:"total"`
	Steps        []UsedInStep `json:"steps"` // all, oldest first
}

// UsageQuery says which use Usage returns. Zero values are the defaults.
type UsageQuery struct {
	From, To time.Time // default the last 7 days; made longer to whole steps, at most 1000
	Step     string    // hour or day; default hour
	Team     string    // its name; default the key's. Another team's needs the scope operator
}

// Usage returns what the team used.
func (c *Client) Usage(ctx context.Context, q UsageQuery) (*Usage, error) {
	query := url.Values{}
	for name, at := range map[string]time.Time{"from": q.From, "to": q.To} {
		if !at.IsZero() {
			query.Set(name, at.Format(time.RFC3339Nano))
		}
	}
	for name, text := range map[string]string{"step": q.Step, "team": q.Team} {
		if text != "" {
			query.Set(name, text)
		}
	}
	var out Usage
	if err := c.call(ctx, request{method: http.MethodGet, path: "/v1/usage", query: query}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Limit is a limit of the team, or of each of its sandboxes.
type Limit struct {
	Name      string   `json:"name"`
	Of        string   `json:"of"` // team or sandbox
	Allowed   float64  `json:"allowed"`
	Used      *float64 `json:"used,omitempty"` // now; nil where that has no meaning or is not counted
	Unit      string   `json:"unit"`           // such as MiB; "" for a number of things
	ChangedBy string   `json:"changed_by"`     // configuration or team, which the operator changes, or fixed
	Setting   string   `json:"setting"`        // what is changed
}

// Limits returns the limits of the team and of each of its sandboxes.
func (c *Client) Limits(ctx context.Context) ([]Limit, error) {
	var out []Limit
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/limits"}, &out)
	return out, err
}
