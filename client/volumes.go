package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Volume is a directory that sandboxes mount and that outlives them.
type Volume struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	SizeMiB   int       `json:"size_mib"` // the most that its files may take
	CreatedAt time.Time `json:"created_at"`
}

// VolumeMount is a volume in a sandbox.
type VolumeMount struct {
	Volume string `json:"volume"` // its name; in a request, or its id
	Path   string `json:"path"`   // where it is: an absolute path
}

// CreateVolume creates an empty volume. A size of 0 means the server's default. An
// error with the code conflict means that the team has one of that name.
func (c *Client) CreateVolume(ctx context.Context, name string, sizeMiB int) (*Volume, error) {
	body := struct {
		Name    string `json:"name"`
		SizeMiB int    `json:"size_mib,omitempty"`
	}{name, sizeMiB}
	out := &Volume{}
	if err := c.call(ctx, request{method: http.MethodPost, path: "/v1/volumes", body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Volumes returns the team's volumes in the order of their names.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	var out []Volume
	err := c.call(ctx, request{method: http.MethodGet, path: "/v1/volumes"}, &out)
	return out, err
}

// Volume returns a volume, by its name or id.
func (c *Client) Volume(ctx context.Context, volume string) (*Volume, error) {
	out := &Volume{}
	if err := c.call(ctx, request{method: http.MethodGet, path: volumePath(volume)}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteVolume deletes a volume and its files, by its name or id. While a sandbox
// mounts it, also a paused one, that fails with the code invalid_state.
func (c *Client) DeleteVolume(ctx context.Context, volume string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: volumePath(volume)}, nil)
}

func volumePath(volume string) string { return "/v1/volumes/" + url.PathEscape(volume) }
