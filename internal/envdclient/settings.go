package envdclient

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"wrenn.dev"
)

// maxSettings bounds the settings of a guest. It is more than /init takes: JSON may
// escape what the host sent as it was.
const maxSettings = 4 << 20

// Settings are those of Init that a guest keeps in its memory alone. A guest may
// report anything.
type Settings struct {
	Env     map[string]string `json:"envVars"`
	User    string            `json:"defaultUser"`
	Workdir string            `json:"defaultWorkdir"`
}

// Settings asks the guest for its settings. FailedPrecondition: the agent does not
// know the call.
func (c *Client) Settings(ctx context.Context) (*Settings, error) {
	const doing = "read settings"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/settings", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(req)
	if err != nil {
		return nil, explainOldAgent(doing, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxSettings+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return ParseSettings(text)
}

// ParseSettings reads settings in their JSON form.
func ParseSettings(text []byte) (*Settings, error) {
	if len(text) > maxSettings {
		return nil, wrenn.Errorf(wrenn.GuestFailed, "the settings of the guest have more than %d bytes", maxSettings)
	}
	s := &Settings{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, wrenn.Errorf(wrenn.GuestFailed, "settings of the guest: %s", clean(err.Error()))
	}
	return s, nil
}
