//go:build schemathesis

package api

import (
	"cmp"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

// obliging is a service for which every sandbox runs and every file exists, so that
// generated requests reach further than the first check.
type obliging struct{ stub }

func (s *obliging) CreateSandbox(_ context.Context, c service.Caller, req service.CreateSandbox) (*wrenn.Sandbox, error) {
	b, err := s.find(c, testID)
	if err == nil {
		b.Metadata = req.Metadata
	}
	return b, err
}

func (s *obliging) Sandbox(_ context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	if id == testID { // the one that runs; the others are for the stream, which the generator does not speak
		return s.find(c, id)
	}
	return asleep(id), nil
}

func (s *obliging) DeleteSandbox(context.Context, service.Caller, wrenn.SandboxID) error { return nil }

func (s *obliging) BootSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return box(id, wrenn.Running), nil
}

func (s *obliging) PauseSandboxBy(_ context.Context, _ service.Caller, id wrenn.SandboxID, _ wrenn.PauseOptions) (*wrenn.Sandbox, error) {
	return box(id, wrenn.Paused), nil
}

func (s *obliging) ResumeSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return box(id, wrenn.Running), nil
}

func (s *obliging) SetTimeout(_ context.Context, _ service.Caller, id wrenn.SandboxID, _ time.Duration) (*wrenn.Sandbox, error) {
	return box(id, wrenn.Running), nil
}

func (s *obliging) ChangeSandbox(_ context.Context, _ service.Caller, id wrenn.SandboxID, _ service.ChangeSandbox) (*wrenn.Sandbox, error) {
	return box(id, wrenn.Running), nil
}

func (s *obliging) SetMetadata(_ context.Context, _ service.Caller, id wrenn.SandboxID, metadata map[string]string) (*wrenn.Sandbox, error) {
	b := box(id, wrenn.Running)
	b.Metadata = metadata
	return b, nil
}

func (s *obliging) Network(context.Context, service.Caller, wrenn.SandboxID) (wrenn.NetworkPolicy, error) {
	return wrenn.NetworkPolicy{DenyByDefault: true}.With(wrenn.NetworkPolicy{DenyByDefault: true}, wrenn.NetworkPolicy{}), nil
}

func (s *obliging) TeamNetwork(context.Context, service.Caller) (wrenn.NetworkPolicy, error) {
	return wrenn.NetworkPolicy{DenyByDefault: true}, nil
}

func (s *obliging) SetTeamNetwork(_ context.Context, _ service.Caller, p wrenn.NetworkPolicy) error {
	return p.CheckLayer()
}

func (s *obliging) TemplateNetwork(_ context.Context, _ service.Caller, template string) (wrenn.NetworkPolicy, error) {
	_, err := wrenn.ParseTemplateName(template)
	return wrenn.NetworkPolicy{}, err
}

func (s *obliging) SetTemplateNetwork(_ context.Context, _ service.Caller, template string, p wrenn.NetworkPolicy) error {
	_, err := wrenn.ParseTemplateName(template)
	return cmp.Or(err, p.CheckLayer())
}

func (s *obliging) SetNetwork(_ context.Context, _ service.Caller, id wrenn.SandboxID, p wrenn.NetworkPolicy) (*wrenn.Sandbox, error) {
	b := box(id, wrenn.Running)
	b.Network = p
	return b, nil
}

func (s *obliging) EgressLog(context.Context, service.Caller, wrenn.SandboxID, uint64, time.Duration) (wrenn.EgressLog, error) {
	return wrenn.EgressLog{Events: []wrenn.EgressEvent{{Seq: 1, At: time.Now().UTC(), Protocol: wrenn.EgressTCP, Verdict: wrenn.EgressAllowed, Port: 80}}}, nil
}

func (s *obliging) ExplainEgress(_ context.Context, _ service.Caller, _ wrenn.SandboxID, to string, _ uint16) (wrenn.EgressExplanation, error) {
	return wrenn.EgressExplanation{Reason: "nothing is allowed"}, wrenn.CheckEgressHost(wrenn.CanonicalName(to))
}

func (s *obliging) SandboxMetrics(context.Context, service.Caller, wrenn.SandboxID, time.Time, time.Time) ([]wrenn.MetricsSample, error) {
	return []wrenn.MetricsSample{{At: time.Now().UTC(), CPUs: 1, CPUPercent: 12.5}}, nil
}

func (s *obliging) Exec(_ context.Context, _ service.Caller, _ wrenn.SandboxID, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	return &wrenn.ExecResult{Stdout: cmd.Stdin, Stderr: []byte(strings.Join(cmd.Args, " ")), Status: "exit status 0"}, nil
}

func (s *obliging) WriteFile(_ context.Context, _ service.Caller, _ wrenn.SandboxID, _, _ string, content io.Reader) error {
	_, err := io.Copy(io.Discard, content)
	return err
}

func (s *obliging) ReadFile(_ context.Context, _ service.Caller, _ wrenn.SandboxID, _, path string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(path)), nil
}

// Logs end also when they are followed.
func (s *obliging) Logs(_ context.Context, _ service.Caller, id wrenn.SandboxID, _ wrenn.ConsoleQuery) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("console of " + string(id))), nil
}

func (s *obliging) RevokeKey(context.Context, service.Caller, string) error { return nil }

// TestSchemathesis lets a generator that reads the contract look for answers
// that are not in it. scripts/schemathesis.sh starts it.
func TestSchemathesis(t *testing.T) {
	server := serve(t, &obliging{}, func(s *Server) { s.admission = door(s.service, 1e6, 1e6) })
	cmd := exec.CommandContext(t.Context(), "../../../scripts/schemathesis.sh", "http://"+server.address+"/openapi.yaml")
	cmd.Env = append(os.Environ(), "WRENN_API_KEY="+testKey)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("schemathesis: %v", err)
	}
}
