//go:build root && vm

package e2e

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"wrenn"
	"wrenn/client"
	"wrenn/internal/envdclient"
	"wrenn/internal/host"
	"wrenn/internal/image"
	"wrenn/internal/network"
	"wrenn/internal/sandbox"
	"wrenn/internal/verify"
)

// onHost is what verify needs, of a host without a control plane.
type onHost struct {
	h     *host.Host
	boxes map[string]*sandbox.Sandbox
}

func (o onHost) box(id string) *sandbox.Sandbox {
	sb, _ := o.h.Manager.Get(wrenn.SandboxID(id))
	return sb
}

func (o onHost) CreateSandbox(ctx context.Context, _ client.CreateSandbox) (*client.Sandbox, error) {
	sb, err := o.h.Manager.Create(ctx, wrenn.NewSandboxID(), small)
	if err != nil {
		return nil, err
	}
	return &client.Sandbox{ID: string(sb.Info().ID)}, nil
}

func (o onHost) DeleteSandbox(ctx context.Context, id string) error { return o.box(id).Destroy(ctx) }

func (o onHost) Exec(ctx context.Context, id string, cmd client.Command) (*client.Result, error) {
	r, err := o.box(id).Guest().Exec(ctx, envdclient.Command{Path: cmd.Cmd, Args: cmd.Args, User: cmd.User})
	if err != nil {
		return nil, err
	}
	return &client.Result{Stdout: r.Stdout, Stderr: r.Stderr, ExitCode: r.Code, Status: r.Status}, nil
}

func (o onHost) WriteFile(ctx context.Context, id, name string, content io.Reader, _ client.FileOptions) error {
	return o.box(id).Guest().WriteFile(ctx, "", name, content)
}

func (o onHost) Fork(ctx context.Context, id string, n int) ([]string, error) {
	var ids []wrenn.SandboxID
	var out []string
	for range n {
		ids = append(ids, wrenn.NewSandboxID())
	}
	forked, err := o.box(id).Fork(ctx, ids)
	for _, f := range forked {
		if f.Err != nil {
			return out, f.Err
		}
		out = append(out, string(f.ID))
	}
	return out, err
}

func TestVerifyOnHost(t *testing.T) {
	dir := stateDir(t)
	h, err := host.Open(t.Context(), host.Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		Image:   image.Config{StateDir: needed(t, "WRENN_TEST_IMAGES"), Envd: "../bin/envd", Stage0: "../bin/stage0"},
		Driver:  host.DriverConfig{Name: host.QEMU, QEMU: "qemu-system-x86_64"},
		Network: network.Config{Prefix: "wver", Range: netip.MustParsePrefix("10.231.0.0/16")},
		Out:     t.Output(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(context.WithoutCancel(t.Context()))
	report, err := verify.Fork(t.Context(), onHost{h: h}, verify.Options{Count: 3, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.MarshalIndent(report, "", " ")
	t.Log(string(text))
	for _, r := range report.Results {
		t.Logf("%-8s %-45s %-45s %s", r.Verdict, r.Group, r.Title, r.Found)
	}
}
