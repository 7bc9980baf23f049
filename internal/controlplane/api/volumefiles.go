package api

import (
	"context"
	"errors"
	"io"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// VolumeFiles are the files of volumes, without a sandbox. The volume is named by its
// name or id; paths begin at its root.
type VolumeFiles interface {
	StatVolumeFile(ctx context.Context, c service.Caller, volume, path string) (wrenn.VolumeEntry, error)
	ListVolumeFiles(ctx context.Context, c service.Caller, volume, path string, levels int) ([]wrenn.VolumeEntry, error)
	MakeVolumeDirectory(ctx context.Context, c service.Caller, volume, path string, a wrenn.VolumeAttributes, parents bool) (wrenn.VolumeEntry, error)
	RemoveVolumeFile(ctx context.Context, c service.Caller, volume, path string) error
	// ReadVolumeFile's reader returns io.EOF at the end of the file, never at a broken connection.
	ReadVolumeFile(ctx context.Context, c service.Caller, volume, path string) (io.ReadCloser, error)
	// WriteVolumeFile changes the file as a whole or not at all.
	WriteVolumeFile(ctx context.Context, c service.Caller, volume, path string, w wrenn.VolumeWrite, content io.Reader) (wrenn.VolumeEntry, error)
}

func (h *handlers) GetVolumeFile(ctx context.Context, req oapi.GetVolumeFileRequestObject) (oapi.GetVolumeFileResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	e, err := h.s.service.StatVolumeFile(ctx, callerOf(ctx), req.Volume, req.Params.Path)
	if err != nil {
		return nil, err
	}
	return oapi.GetVolumeFile200JSONResponse{Body: volumeEntry(e)}, nil
}

func (h *handlers) ListVolumeFiles(ctx context.Context, req oapi.ListVolumeFilesRequestObject) (oapi.ListVolumeFilesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	levels := 1
	if req.Params.Depth != nil {
		levels = *req.Params.Depth
	}
	list, err := h.s.service.ListVolumeFiles(ctx, callerOf(ctx), req.Volume, req.Params.Path, levels)
	if err != nil {
		return nil, err
	}
	answer := oapi.ListVolumeFiles200JSONResponse{Body: make([]oapi.VolumeEntry, 0, len(list))} // none is [], not null
	for _, e := range list {
		answer.Body = append(answer.Body, volumeEntry(e))
	}
	return answer, nil
}

func (h *handlers) CreateVolumeDirectory(ctx context.Context, req oapi.CreateVolumeDirectoryRequestObject) (oapi.CreateVolumeDirectoryResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	p := req.Params
	e, err := h.s.service.MakeVolumeDirectory(ctx, callerOf(ctx), req.Volume, p.Path, wrenn.VolumeAttributes{Mode: p.Mode, UID: p.UID, GID: p.GID}, value(p.Parents))
	if err != nil {
		return nil, err
	}
	return oapi.CreateVolumeDirectory200JSONResponse{Body: volumeEntry(e)}, nil
}

func (h *handlers) DeleteVolumeFile(ctx context.Context, req oapi.DeleteVolumeFileRequestObject) (oapi.DeleteVolumeFileResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.RemoveVolumeFile(ctx, callerOf(ctx), req.Volume, req.Params.Path); err != nil {
		return nil, err
	}
	return oapi.DeleteVolumeFile204Response{}, nil
}

func (h *handlers) ReadVolumeFile(ctx context.Context, req oapi.ReadVolumeFileRequestObject) (oapi.ReadVolumeFileResponseObject, error) {
	content, err := h.s.service.ReadVolumeFile(ctx, callerOf(ctx), req.Volume, req.Params.Path)
	if err != nil {
		return nil, err
	}
	d, err := begin(req.Params.Path, content)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (h *handlers) WriteVolumeFile(ctx context.Context, req oapi.WriteVolumeFileRequestObject) (oapi.WriteVolumeFileResponseObject, error) {
	p := req.Params
	content := &rawBody{Reader: req.Body}
	e, err := h.s.service.WriteVolumeFile(ctx, callerOf(ctx), req.Volume, p.Path, wrenn.VolumeWrite{
		VolumeAttributes: wrenn.VolumeAttributes{Mode: p.Mode, UID: p.UID, GID: p.GID},
		Parents:          value(p.Parents), NoReplace: p.Replace != nil && !*p.Replace,
	}, content)
	switch {
	case content.err != nil:
		return nil, brokenBody(content.err) // the cause of the service's error
	case err != nil:
		return nil, err
	}
	return oapi.WriteVolumeFile200JSONResponse{Body: volumeEntry(e)}, nil
}

// rawBody is a body that records why reading it failed; the service's error may not.
type rawBody struct {
	io.Reader

	err error // nil at the end of a whole body
}

func (f *rawBody) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

func volumeEntry(e wrenn.VolumeEntry) oapi.VolumeEntry {
	return oapi.VolumeEntry{
		Path: e.Path, Type: oapi.VolumeEntryType(e.Type), Size: e.Size, Mode: e.Mode, UID: e.UID, GID: e.GID, Target: e.Target,
		AccessedAt: e.AccessedAt.UTC(), ModifiedAt: e.ModifiedAt.UTC(), ChangedAt: e.ChangedAt.UTC(),
	}
}
