package clienttest

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
)

func (f *fake) volume(name string, sizeMiB int) (*wrenn.Volume, error) {
	if name != "data" {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no volume %s", name)
	}
	return &wrenn.Volume{ID: "v00000000000000000001", Name: name, SizeMiB: sizeMiB, CreatedAt: made}, nil
}

func (f *fake) CreateVolume(_ context.Context, _ service.Caller, req service.CreateVolume) (*wrenn.Volume, error) {
	return f.volume(req.Name, req.SizeMiB)
}

func (f *fake) ListVolumes(context.Context, service.Caller) ([]wrenn.Volume, error) {
	v, err := f.volume("data", 64)
	return []wrenn.Volume{*v}, err
}

func (f *fake) Volume(_ context.Context, _ service.Caller, name string) (*wrenn.Volume, error) {
	return f.volume(name, 64)
}

func (f *fake) DeleteVolume(_ context.Context, _ service.Caller, name string) error {
	_, err := f.volume(name, 0)
	return err
}

func TestVolumes(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	want := &client.Volume{ID: "v00000000000000000001", Name: "data", SizeMiB: 64, CreatedAt: made}
	created, err := c.CreateVolume(t.Context(), "data", 64)
	if diff := cmp.Diff(want, created); diff != "" || err != nil {
		t.Errorf("CreateVolume(): %v\n%s", err, diff)
	}
	list, err := c.Volumes(t.Context())
	if diff := cmp.Diff([]client.Volume{*want}, list); diff != "" || err != nil {
		t.Errorf("Volumes(): %v\n%s", err, diff)
	}
	got, err := c.Volume(t.Context(), "data")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Volume(): %v\n%s", err, diff)
	}
	if err := c.DeleteVolume(t.Context(), "data"); err != nil {
		t.Error(err)
	}
	if err := c.DeleteVolume(t.Context(), "other"); client.CodeOf(err) != client.NotFound {
		t.Errorf("DeleteVolume(other) = %v", err)
	}
	if _, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Volumes: []client.VolumeMount{{Volume: "data", Path: "/data"}}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]wrenn.VolumeMount{{Name: "data", Path: "/data"}}, f.created.Volumes); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}
