package api

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) CreateVolume(ctx context.Context, req oapi.CreateVolumeRequestObject) (oapi.CreateVolumeResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	v, err := h.s.service.CreateVolume(ctx, callerOf(ctx), service.CreateVolume{Name: req.Body.Name, SizeMiB: value(req.Body.SizeMib)})
	if err != nil {
		return nil, err
	}
	return oapi.CreateVolume201JSONResponse{
		Body: volume(v), Headers: oapi.CreateVolume201ResponseHeaders{Location: new("/v1/volumes/" + v.Name)},
	}, nil
}

func (h *handlers) ListVolumes(ctx context.Context, _ oapi.ListVolumesRequestObject) (oapi.ListVolumesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	list, err := h.s.service.ListVolumes(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListVolumes200JSONResponse{Body: make([]oapi.Volume, 0, len(list))} // none is [], not null
	for i := range list {
		answer.Body = append(answer.Body, volume(&list[i]))
	}
	return answer, nil
}

func (h *handlers) GetVolume(ctx context.Context, req oapi.GetVolumeRequestObject) (oapi.GetVolumeResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	v, err := h.s.service.Volume(ctx, callerOf(ctx), req.Volume)
	if err != nil {
		return nil, err
	}
	return oapi.GetVolume200JSONResponse{Body: volume(v)}, nil
}

func (h *handlers) DeleteVolume(ctx context.Context, req oapi.DeleteVolumeRequestObject) (oapi.DeleteVolumeResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.DeleteVolume(ctx, callerOf(ctx), req.Volume); err != nil {
		return nil, err
	}
	return oapi.DeleteVolume204Response{}, nil
}

func volume(v *wrenn.Volume) oapi.Volume {
	return oapi.Volume{ID: string(v.ID), Name: v.Name, SizeMib: v.SizeMiB, CreatedAt: v.CreatedAt.UTC()}
}

// parseMounts returns the volumes that a request asks for.
func parseMounts(list []oapi.VolumeMount) []wrenn.VolumeMount {
	var out []wrenn.VolumeMount
	for _, m := range list {
		out = append(out, wrenn.VolumeMount{Name: m.Volume, Path: m.Path})
	}
	return out
}

// mounts returns the volumes of a sandbox, nil without any.
func mounts(list []wrenn.VolumeMount) *[]oapi.VolumeMount {
	if len(list) == 0 {
		return nil
	}
	var out []oapi.VolumeMount
	for _, m := range list {
		out = append(out, oapi.VolumeMount{Volume: m.Name, Path: m.Path})
	}
	return &out
}
