package hosttest

import (
	"context"
	"maps"
	"slices"

	"wrenn.dev"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

// CreateVolume makes one, or leaves it as it is.
func (a *Agent) CreateVolume(ctx context.Context, req *hostagentv1.CreateVolumeRequest) (*hostagentv1.CreateVolumeResponse, error) {
	return &hostagentv1.CreateVolumeResponse{}, a.with(ctx, "CreateVolume", req.GetVolumeId(), func() error {
		if _, err := wrenn.ParseVolumeID(req.GetVolumeId()); err != nil {
			return err
		}
		if a.volumes == nil {
			a.volumes = map[string]bool{}
		}
		a.volumes[req.GetVolumeId()] = true
		return nil
	})
}

// DeleteVolume removes one, or nothing.
func (a *Agent) DeleteVolume(ctx context.Context, req *hostagentv1.DeleteVolumeRequest) (*hostagentv1.DeleteVolumeResponse, error) {
	return &hostagentv1.DeleteVolumeResponse{}, a.with(ctx, "DeleteVolume", req.GetVolumeId(), func() error {
		if _, err := wrenn.ParseVolumeID(req.GetVolumeId()); err != nil {
			return err
		}
		delete(a.volumes, req.GetVolumeId())
		return nil
	})
}

// Volumes returns the ids of all volumes.
func (a *Agent) Volumes() []string {
	var ids []string
	_ = a.locked(func() error { // never fails
		ids = slices.Sorted(maps.Keys(a.volumes))
		return nil
	})
	return ids
}
