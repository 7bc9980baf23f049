package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// VolumeEntry describes a file, directory or symbolic link of a volume.
type VolumeEntry struct {
	Path       string    `json:"path"` // from the root of the volume: /a/b
	Type       string    `json:"type"` // file, directory, symlink or unknown
	Size       int64     `json:"size"`
	Mode       uint32    `json:"mode"` // the 12 bits of permissions
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	AccessedAt time.Time `json:"accessed_at"`
	ModifiedAt time.Time `json:"modified_at"`
	ChangedAt  time.Time `json:"changed_at"`
	Target     string    `json:"target,omitempty"` // of a link
}

// VolumeFileOptions are options of a file or directory that is written. Nil means the
// server's default for a new one, and no change for one that exists.
type VolumeFileOptions struct {
	Mode, UID, GID *uint32

	Parents   bool // directories above it are made, too
	NoReplace bool // of WriteVolumeFile: the code conflict if the file exists
}

func (o VolumeFileOptions) add(query url.Values) {
	for name, n := range map[string]*uint32{"mode": o.Mode, "uid": o.UID, "gid": o.GID} {
		if n != nil {
			query.Set(name, strconv.FormatUint(uint64(*n), 10))
		}
	}
	if o.Parents {
		query.Set("parents", "true")
	}
	if o.NoReplace {
		query.Set("replace", "false")
	}
}

// volumeFile is a request for a file of a volume.
func volumeFile(method, volume, part, name string, query url.Values) (request, error) {
	if err := checkName(name); err != nil {
		return request{}, err
	}
	query.Set("path", name)
	return request{method: method, path: volumePath(volume) + "/files" + part, query: query}, nil
}

// VolumeFile describes a file, directory or link of a volume, which is named by its
// name or id.
func (c *Client) VolumeFile(ctx context.Context, volume, name string) (*VolumeEntry, error) {
	return c.volumeEntry(ctx, http.MethodGet, volume, "", name, url.Values{})
}

// VolumeFiles returns the entries of a directory of a volume, in the order of their
// paths, of so many levels of directories.
func (c *Client) VolumeFiles(ctx context.Context, volume, name string, levels int) ([]VolumeEntry, error) {
	r, err := volumeFile(http.MethodGet, volume, "/list", name, url.Values{"depth": {strconv.Itoa(levels)}})
	if err != nil {
		return nil, err
	}
	var out []VolumeEntry
	err = c.call(ctx, r, &out)
	return out, err
}

// CreateVolumeDirectory makes a directory in a volume. Without opts.Parents one that
// exists is an error with the code conflict.
func (c *Client) CreateVolumeDirectory(ctx context.Context, volume, name string, opts VolumeFileOptions) (*VolumeEntry, error) {
	query := url.Values{}
	opts.add(query)
	return c.volumeEntry(ctx, http.MethodPut, volume, "/directory", name, query)
}

// DeleteVolumeFile deletes a file, or a directory with all that is in it.
func (c *Client) DeleteVolumeFile(ctx context.Context, volume, name string) error {
	r, err := volumeFile(http.MethodDelete, volume, "", name, url.Values{})
	if err != nil {
		return err
	}
	return c.call(ctx, r, nil)
}

// ReadVolumeFile opens a file of a volume. The caller closes it. A cut transfer is an
// error of Read, never io.EOF.
func (c *Client) ReadVolumeFile(ctx context.Context, volume, name string) (io.ReadCloser, error) {
	r, err := volumeFile(http.MethodGet, volume, "/content", name, url.Values{})
	if err != nil {
		return nil, err
	}
	return c.stream(ctx, r)
}

// WriteVolumeFile writes a file of a volume. It changes as a whole at the end or not at
// all.
func (c *Client) WriteVolumeFile(ctx context.Context, volume, name string, content io.Reader, opts VolumeFileOptions) (*VolumeEntry, error) {
	query := url.Values{}
	opts.add(query)
	r, err := volumeFile(http.MethodPut, volume, "/content", name, query)
	if err != nil {
		return nil, err
	}
	source := &watched{r: content}
	r.media, r.stream = "application/octet-stream", source
	out := &VolumeEntry{}
	err = c.call(ctx, r, out)
	if own := source.failure(); own != nil && err != nil {
		return nil, fmt.Errorf("read the content for %s: %w", name, own)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *Client) volumeEntry(ctx context.Context, method, volume, part, name string, query url.Values) (*VolumeEntry, error) {
	r, err := volumeFile(method, volume, part, name, query)
	if err != nil {
		return nil, err
	}
	out := &VolumeEntry{}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}
