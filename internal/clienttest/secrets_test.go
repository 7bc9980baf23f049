package clienttest

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
)

func (f *fake) secret(name string, metadata map[string]string) (*wrenn.Secret, error) {
	if name == "missing" {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is none of the name %s", name)
	}
	return &wrenn.Secret{ID: "sec_00000000000000000001", Name: name, Version: 2, Metadata: metadata, CreatedAt: made, UpdatedAt: made}, nil
}

func (f *fake) SetSecret(_ context.Context, _ service.Caller, req service.NewSecret) (*wrenn.Secret, bool, error) {
	out, err := f.secret(req.Name, req.Metadata)
	return out, false, err
}

func (f *fake) ListSecrets(context.Context, service.Caller, string, int) ([]wrenn.Secret, error) {
	out, err := f.secret("token", nil)
	return []wrenn.Secret{*out}, err
}

func (f *fake) Secret(_ context.Context, _ service.Caller, name string) (*wrenn.Secret, error) {
	return f.secret(name, nil)
}

func (f *fake) DeleteSecret(_ context.Context, _ service.Caller, name string) error {
	_, err := f.secret(name, nil)
	return err
}

func TestSecrets(t *testing.T) {
	c := serve(t, &fake{})
	want := client.Secret{ID: "sec_00000000000000000001", Name: "token", Version: 2, Metadata: map[string]string{"for": "ci"}, CreatedAt: made, UpdatedAt: made}
	got, err := c.SetSecret(t.Context(), "token", "value", want.Metadata)
	if diff := cmp.Diff(&want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	want.Metadata = map[string]string{}
	if got, err = c.Secret(t.Context(), "token"); err != nil || cmp.Diff(&want, got) != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	if list, err := c.Secrets(t.Context()); err != nil || cmp.Diff([]client.Secret{want}, list) != "" {
		t.Errorf("listed %+v, %v", list, err)
	}
	if err := c.DeleteSecret(t.Context(), "token"); err != nil {
		t.Error(err)
	}
	if err := c.DeleteSecret(t.Context(), "missing"); client.CodeOf(err) != client.NotFound {
		t.Errorf("deleted what is missing: %v", err)
	}
}
