package service

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
)

// VolumeFiles are the use cases of files of volumes, without a sandbox. A volume is
// named by its name or id; another team's is NotFound. Paths begin at its root.
type VolumeFiles struct{ *core }

// find returns a volume and the client of its host.
func (s *VolumeFiles) find(ctx context.Context, c Caller, volume string) (wrenn.VolumeID, *hostclient.Client, error) {
	found, err := s.store.FindVolumes(ctx, c.Team, []string{volume})
	if err != nil {
		return "", nil, err
	}
	client, err := s.hosts.client(found[0].Host)
	return found[0].ID, client, err
}

// StatVolumeFile describes a file, directory or link.
func (s *VolumeFiles) StatVolumeFile(ctx context.Context, c Caller, volume, path string) (wrenn.VolumeEntry, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return wrenn.VolumeEntry{}, err
	}
	return host.StatVolumeFile(ctx, id, path)
}

// ListVolumeFiles returns the entries of a directory, of as many levels, by their
// paths: Exhausted when there are more than 10,000.
func (s *VolumeFiles) ListVolumeFiles(ctx context.Context, c Caller, volume, path string, levels int) ([]wrenn.VolumeEntry, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return nil, err
	}
	return host.ListVolumeFiles(ctx, id, path, levels)
}

// MakeVolumeDirectory makes a directory: AlreadyExists if it exists. With parents those
// above it are made, too, and it may exist.
func (s *VolumeFiles) MakeVolumeDirectory(ctx context.Context, c Caller, volume, path string, a wrenn.VolumeAttributes, parents bool) (wrenn.VolumeEntry, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return wrenn.VolumeEntry{}, err
	}
	return host.MakeVolumeDirectory(ctx, id, path, a, parents)
}

// SetVolumeFile changes attributes of a file or directory.
func (s *VolumeFiles) SetVolumeFile(ctx context.Context, c Caller, volume, path string, a wrenn.VolumeAttributes) (wrenn.VolumeEntry, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return wrenn.VolumeEntry{}, err
	}
	return host.SetVolumeFile(ctx, id, path, a)
}

// RenameVolumeFile gives a file or directory another path; what that names is replaced.
func (s *VolumeFiles) RenameVolumeFile(ctx context.Context, c Caller, volume, path, newPath string) (wrenn.VolumeEntry, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return wrenn.VolumeEntry{}, err
	}
	return host.RenameVolumeFile(ctx, id, path, newPath)
}

// RemoveVolumeFile removes a file, or a directory with all that is in it. After an
// error a part of it may be removed.
func (s *VolumeFiles) RemoveVolumeFile(ctx context.Context, c Caller, volume, path string) error {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return err
	}
	return host.RemoveVolumeFile(ctx, id, path)
}

// ReadVolumeFile opens a file. The caller closes it. A cut transfer is an error of
// Read, never io.EOF.
func (s *VolumeFiles) ReadVolumeFile(ctx context.Context, c Caller, volume, path string) (io.ReadCloser, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return nil, err
	}
	return host.ReadVolumeFile(ctx, id, path)
}

// WriteVolumeFile writes content to a file, which changes as a whole at the end or not
// at all; an error of content is returned, wrapped.
func (s *VolumeFiles) WriteVolumeFile(ctx context.Context, c Caller, volume, path string, w wrenn.VolumeWrite, content io.Reader) (wrenn.VolumeEntry, error) {
	id, host, err := s.find(ctx, c, volume)
	if err != nil {
		return wrenn.VolumeEntry{}, err
	}
	return host.WriteVolumeFile(ctx, id, path, w, content)
}

// VolumeToken returns a token which stands for the caller in calls for the files of a
// volume. It is valid as long as the volume exists.
func (s *VolumeFiles) VolumeToken(ctx context.Context, c Caller, id wrenn.VolumeID) (string, error) {
	seed, err := s.tokens.readSeed(ctx)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, seed)
	_, _ = fmt.Fprintf(mac, "files of a volume\x00%s\x00%s", c.Team, id) // never fails; no sandbox has such an id
	return string(c.Team) + "." + hex.EncodeToString(mac.Sum(nil)), nil
}

// CheckVolumeToken returns the caller whose VolumeToken made the token for the volume.
// Other tokens are Unauthenticated.
func (s *VolumeFiles) CheckVolumeToken(ctx context.Context, token, volume string) (Caller, error) {
	refused := wrenn.Errorf(wrenn.Unauthenticated, "the token is not that of this volume: get the volume to know its token")
	team, _, _ := strings.Cut(token, ".")
	id, err := wrenn.ParseVolumeID(volume)
	if err != nil {
		return Caller{}, refused
	}
	c := Caller{Team: wrenn.TeamID(team)}
	want, err := s.VolumeToken(ctx, c, id)
	if err != nil {
		return Caller{}, err
	}
	if !hmac.Equal([]byte(want), []byte(token)) {
		return Caller{}, refused
	}
	return c, nil
}
