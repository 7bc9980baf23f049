package envdclient

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// Usage is what a guest reports that it uses. Sizes are in bytes. A guest may
// report anything: each number is between 0 and 2^53.
type Usage struct {
	MemoryUsed, MemoryTotal, MemoryCache int64
	DiskUsed, DiskTotal                  int64
}

// Usage asks the guest for what it uses now.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	const doing = "read metrics"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/metrics", nil)
	if err != nil {
		return Usage{}, err
	}
	resp, err := c.do(req)
	if err != nil {
		return Usage{}, fmt.Errorf("%s: %w", doing, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return Usage{}, fmt.Errorf("%s: %w", doing, err)
	}
	return parseUsage(text)
}

func parseUsage(text []byte) (Usage, error) {
	var m struct {
		MemTotal  uint64 `json:"mem_total"`
		MemUsed   uint64 `json:"mem_used"`
		MemCache  uint64 `json:"mem_cache"`
		DiskUsed  uint64 `json:"disk_used"`
		DiskTotal uint64 `json:"disk_total"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return Usage{}, fmt.Errorf("metrics of the guest: %s", clean(err.Error()))
	}
	size := func(n uint64) int64 { return int64(min(n, 1<<53)) } // what JSON can hold exactly
	return Usage{
		MemoryUsed: size(m.MemUsed), MemoryTotal: size(m.MemTotal), MemoryCache: size(m.MemCache),
		DiskUsed: size(m.DiskUsed), DiskTotal: size(m.DiskTotal),
	}, nil
}
