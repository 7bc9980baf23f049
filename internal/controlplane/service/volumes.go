package service

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/wake"
)

const (
	defaultVolumeMiB = 10 << 10
	minVolumeMiB     = 16 // less has no room for a journal
)

// Volumes are the use cases of directories that sandboxes mount.
type Volumes struct{ *core }

// CreateVolume is a volume to make. SizeMiB is the most that its files may take; 0 is 10 GiB.
type CreateVolume struct {
	Name    string
	SizeMiB int
}

// CreateVolume makes an empty volume on the host with the most free disk.
// AlreadyExists when the team has one of that name, Exhausted at a limit of the team.
func (s *Volumes) CreateVolume(ctx context.Context, c Caller, req CreateVolume) (*wrenn.Volume, error) {
	if err := wrenn.CheckVolumeName(req.Name); err != nil {
		return nil, err
	}
	v := wrenn.Volume{ID: wrenn.NewVolumeID(), Team: c.Team, Name: req.Name, SizeMiB: cmp.Or(req.SizeMiB, min(defaultVolumeMiB, s.limits.TeamVolumeMiB))}
	if v.SizeMiB < minVolumeMiB || v.SizeMiB > s.limits.TeamVolumeMiB {
		return nil, wrenn.Errorf(wrenn.Invalid, "a volume has %d to %d MiB, not %d: ask for less, or have the operator raise limits.team_volume_mib of the control plane", minVolumeMiB, s.limits.TeamVolumeMiB, v.SizeMiB)
	}
	s.hosts.waitForPings(ctx)
	host, err := s.hosts.ofNewVolume()
	if err != nil {
		return nil, err
	}
	v.Host = host.id
	ctx, cancel := detach(ctx, s.deadlines.Create)
	defer cancel()
	if err := s.store.BeginVolume(ctx, v, s.limits.Limits); err != nil {
		return nil, err
	}
	made, err := s.finishVolume(ctx, host, &v)
	if err != nil {
		s.undoVolume(ctx, &v)
		return nil, err
	}
	return made, nil
}

// finishVolume makes a volume that has a row.
func (s *Volumes) finishVolume(ctx context.Context, host *member, v *wrenn.Volume) (*wrenn.Volume, error) {
	if err := host.client.CreateVolume(ctx, v.ID, v.SizeMiB); err != nil {
		return nil, err
	}
	return s.store.FinishVolume(ctx, v.ID)
}

// undoVolume removes a volume that could not be made. What it cannot do now is the
// volumeReconciler's.
func (s *Volumes) undoVolume(ctx context.Context, v *wrenn.Volume) {
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	if err := s.store.BeginDeleteVolume(ctx, v); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "cannot undo a volume; will retry", slog.String("volume", string(v.ID)), slog.Any("err", err))
		return
	}
	s.removeVolume(ctx, v.ID, v.Host)
}

// ListVolumes returns the team's volumes in the order of their names.
func (s *Volumes) ListVolumes(ctx context.Context, c Caller) ([]wrenn.Volume, error) {
	return s.store.Volumes(ctx, c.Team)
}

// Volume returns a volume of the team, by its name or id: NotFound also for another team's.
func (s *Volumes) Volume(ctx context.Context, c Caller, name string) (*wrenn.Volume, error) {
	found, err := s.store.FindVolumes(ctx, c.Team, []string{name})
	if err != nil {
		return nil, err
	}
	return &found[0], nil
}

// DeleteVolume deletes a volume with its files, by its name or id. FailedPrecondition
// while a sandbox has it, also a paused one.
func (s *Volumes) DeleteVolume(ctx context.Context, c Caller, name string) error {
	v, err := s.Volume(ctx, c, name)
	if err != nil {
		return err
	}
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	if err := s.store.BeginDeleteVolume(ctx, v); err != nil {
		return err
	}
	s.removeVolume(ctx, v.ID, v.Host)
	return nil
}

// removeVolume removes a volume that is deleting from its host, and its row. If that
// fails now the volumeReconciler does it.
func (c *core) removeVolume(ctx context.Context, id wrenn.VolumeID, host wrenn.HostID) {
	client, err := c.hosts.client(host)
	if err == nil {
		err = client.DeleteVolume(ctx, id)
	}
	if err == nil {
		err = c.store.DropVolume(ctx, id)
	}
	if err != nil && ctx.Err() == nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "cannot remove a volume from its host; will retry",
			slog.String("volume", string(id)), slog.String("host", string(host)), slog.Any("err", err))
	}
}

// findVolumes returns the mounts of a new sandbox, which name volumes, with the ids of
// the volumes, and the host that stores them all; "" without volumes.
func (c *core) findVolumes(ctx context.Context, caller Caller, mounts []wrenn.VolumeMount) ([]wrenn.VolumeMount, wrenn.HostID, error) {
	if len(mounts) == 0 {
		return nil, "", nil
	}
	names := make([]string, len(mounts))
	for i, m := range mounts {
		names[i] = m.Name
	}
	found, err := c.store.FindVolumes(ctx, caller.Team, names)
	if err != nil {
		return nil, "", err
	}
	mounts = slices.Clone(mounts)
	for i, v := range found {
		if v.Host != found[0].Host {
			return nil, "", wrenn.Errorf(wrenn.FailedPrecondition, "volumes %s and %s are on different hosts: a sandbox mounts those of one host", found[0].Name, v.Name)
		}
		mounts[i].Volume, mounts[i].Name = v.ID, v.Name
	}
	return mounts, found[0].Host, nil
}

// hostOf returns the host that a sandbox must be on, of those that have its template
// and its volumes; "" is any.
func hostOf(template, volumes wrenn.HostID) (wrenn.HostID, error) {
	if template != "" && volumes != "" && template != volumes {
		return "", wrenn.Errorf(wrenn.FailedPrecondition, "the template is on host %s and the volumes are on host %s: build the template there, or use another volume", template, volumes)
	}
	return cmp.Or(template, volumes), nil
}

// volumeReconciler removes the volumes whose rows say so from their hosts. Every
// replica does: twice is allowed.
type volumeReconciler struct {
	*core
	every time.Duration
}

func (r *volumeReconciler) run(ctx context.Context) error {
	for wake.Sleep(ctx, r.every) {
		// A create takes less time than the grace of one that began on a host.
		gone, err := r.store.VolumesToDelete(ctx, abandonedBuildAge, r.deadlines.Create+settleSlack)
		if err != nil && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "cannot look for volumes to delete; will retry", slog.Any("err", err))
		}
		for id, host := range gone {
			if m := r.hosts.member(host); m != nil {
				if up, _ := m.known(); up {
					r.removeVolume(ctx, id, host)
				}
			}
		}
	}
	return nil
}
