//go:build root

package server_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
	pb "wrenn.dev/proto/gen/hostagent/v1"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

// caller is a control plane that may send whatever it likes.
type caller struct {
	hostagentv1connect.HostAgentServiceClient
	agent *agenttest.Agent
}

func call(t *testing.T, cfg agenttest.Config) caller {
	t.Helper()
	return connectTo(t, agenttest.New(t, cfg))
}

func connectTo(t *testing.T, agent *agenttest.Agent) caller {
	t.Helper()
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(agent.URL(), "unix://"))
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return caller{hostagentv1connect.NewHostAgentServiceClient(&http.Client{Transport: transport}, "http://agent"), agent}
}

// create makes a sandbox.
func (c caller) create(t *testing.T) string {
	t.Helper()
	id := string(wrenn.NewSandboxID())
	if _, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id}); err != nil {
		t.Fatal(err)
	}
	return id
}

// list returns what the inventory says, by id.
func (c caller) list(t *testing.T) map[string]*pb.SandboxInfo {
	t.Helper()
	inv, err := c.ListSandboxes(t.Context(), &pb.ListSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*pb.SandboxInfo{}
	for _, info := range inv.GetSandboxes() {
		out[info.GetSandboxId()] = info
	}
	return out
}

func TestLife(t *testing.T) {
	c := call(t, agenttest.Config{Limits: sandbox.Limits{Sandboxes: 5, MemoryMiB: 4096}})
	id := string(wrenn.NewSandboxID())
	want := &pb.CreateSandboxRequest{SandboxId: id, Template: "base", Vcpus: 2, MemoryMb: 256, TimeoutSec: 60}
	for range 2 { // as after a lost answer
		got, err := c.CreateSandbox(t.Context(), want)
		testkit.Must(t, err)
		if got.GetSandboxId() != id || got.GetStatus() != pb.SandboxStatus_SANDBOX_STATUS_RUNNING {
			t.Errorf("created %v", got)
		}
	}
	_, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, Vcpus: 2, MemoryMb: 512})
	testkit.WantRPCCode(t, err, connect.CodeAlreadyExists, "another template")
	if n := len(c.agent.World.Running()); n != 1 {
		t.Errorf("%d machines", n)
	}
	info := c.list(t)[id]
	if info.GetVcpus() != 2 || info.GetMemoryMb() != 256 || info.GetTimeoutSec() != 60 || info.GetTemplate() != "base" || info.GetCreatedAtUnix() == 0 {
		t.Errorf("inventory: %v", info)
	}
	ping, err := c.Ping(t.Context(), &pb.PingRequest{})
	testkit.Must(t, err)
	if p := ping.GetCapacity(); ping.GetVersion() != "test" || ping.GetDriver() != vmfake.Name || ping.GetInstance() == "" ||
		p.GetSandboxes() != 5 || p.GetSandboxesUsed() != 1 || p.GetMemoryMb() != 4096 || p.GetMemoryMbUsed() != 256 || p.GetDiskMb() == 0 {
		t.Errorf("ping: %v", ping)
	}
	_, err = c.ExtendSandbox(t.Context(), &pb.ExtendSandboxRequest{SandboxId: id, TimeoutSec: 3600})
	testkit.Must(t, err)
	if got := c.list(t)[id]; got.GetTimeoutSec() != 3600 || got.GetVersion() <= info.GetVersion() {
		t.Errorf("extended: %v, was %v", got, info)
	}
	c.pauseAndResume(t, id)
	for range 2 {
		_, err = c.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id})
		testkit.Must(t, err)
	}
	if left := c.list(t); len(left) != 0 || len(c.agent.World.Running()) != 0 {
		t.Errorf("left: %v, machines %v", left, c.agent.World.Running())
	}
}

func (c caller) pauseAndResume(t *testing.T, id string) {
	t.Helper()
	for range 2 {
		_, err := c.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
		testkit.Must(t, err)
	}
	if got := c.list(t)[id].GetStatus(); got != pb.SandboxStatus_SANDBOX_STATUS_PAUSED {
		t.Errorf("paused: %v", got)
	}
	for range 2 {
		_, err := c.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id})
		testkit.Must(t, err)
	}
	_, err := c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "true", User: "root"})
	testkit.Must(t, err)
}

// about are the calls that are about one sandbox.
func (c caller) about(ctx context.Context, id string) map[string]func() error {
	return map[string]func() error{
		"pause":  func() error { _, err := c.PauseSandbox(ctx, &pb.PauseSandboxRequest{SandboxId: id}); return err },
		"resume": func() error { _, err := c.ResumeSandbox(ctx, &pb.ResumeSandboxRequest{SandboxId: id}); return err },
		"extend": func() error { _, err := c.ExtendSandbox(ctx, &pb.ExtendSandboxRequest{SandboxId: id}); return err },
		"fork": func() error {
			_, err := c.ForkSandbox(ctx, &pb.ForkSandboxRequest{SandboxId: id, NewIds: []string{string(wrenn.NewSandboxID())}})
			return err
		},
		"checkpoint": func() error {
			_, err := c.CreateCheckpoint(ctx, &pb.CreateCheckpointRequest{SandboxId: id, CheckpointId: "s"})
			return err
		},
		"list checkpoints": func() error { _, err := c.ListCheckpoints(ctx, &pb.ListCheckpointsRequest{SandboxId: id}); return err },
		"delete checkpoint": func() error {
			_, err := c.DeleteCheckpoint(ctx, &pb.DeleteCheckpointRequest{SandboxId: id, CheckpointId: "s"})
			return err
		},
		"exec": func() error { _, err := c.Exec(ctx, &pb.ExecRequest{SandboxId: id, Cmd: "true"}); return err },
		"signal": func() error {
			_, err := c.SignalProcess(ctx, &pb.SignalProcessRequest{SandboxId: id, Pid: 1, Signal: pb.Signal_SIGNAL_SIGTERM})
			return err
		},
		"write": func() error { _, err := c.WriteFile(ctx, &pb.WriteFileRequest{SandboxId: id, Path: "/x"}); return err },
		"read":  func() error { _, err := c.ReadFile(ctx, &pb.ReadFileRequest{SandboxId: id, Path: "/x"}); return err },
		"write stream": func() error {
			stream, err := c.WriteFileStream(ctx)
			if err != nil {
				return err
			}
			if err := stream.Send(meta(id, "/x")); err != nil {
				return err
			}
			_, err = stream.CloseAndReceive()
			return err
		},
		"read stream": func() error {
			stream, err := c.ReadFileStream(ctx, &pb.ReadFileStreamRequest{SandboxId: id, Path: "/x"})
			if err != nil {
				return err
			}
			defer stream.Close()
			stream.Receive()
			return stream.Err()
		},
	}
}

func TestCallsAboutNoSandbox(t *testing.T) {
	c := call(t, agenttest.Config{})
	for id, code := range map[string]connect.Code{
		string(wrenn.NewSandboxID()): connect.CodeNotFound,
		"":                           connect.CodeInvalidArgument,
		"../../etc":                  connect.CodeInvalidArgument,
		strings.Repeat("i", 1<<16):   connect.CodeInvalidArgument,
	} {
		for name, do := range c.about(t.Context(), id) {
			t.Run(fmt.Sprintf("%s %.10q", name, id), func(t *testing.T) { testkit.WantRPCCode(t, do(), code, "") })
		}
		if code == connect.CodeInvalidArgument {
			_, err := c.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id})
			testkit.WantRPCCode(t, err, code, "")
			_, err = c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id})
			testkit.WantRPCCode(t, err, code, "")
		}
	}
}

// What a paused sandbox does not do it refuses, with what to do.
func TestCallsAboutAPausedSandbox(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	_, err := c.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
	testkit.Must(t, err)
	for name, do := range c.about(t.Context(), id) {
		if !slices.Contains([]string{"pause", "resume", "extend", "fork", "list checkpoints", "delete checkpoint"}, name) {
			t.Run(name, func(t *testing.T) { testkit.WantRPCCode(t, do(), connect.CodeFailedPrecondition, "resume it first") })
		}
	}
}

func TestWhatCannotBeCreated(t *testing.T) {
	c := call(t, agenttest.Config{})
	for name, tc := range map[string]struct {
		change func(*pb.CreateSandboxRequest)
		code   connect.Code
		says   string
	}{
		"a template of one's own": {func(r *pb.CreateSandboxRequest) { r.Template = "python" }, connect.CodeNotFound, `no template "python"`},
		"too many CPUs":           {func(r *pb.CreateSandboxRequest) { r.Vcpus = 1000 }, connect.CodeInvalidArgument, "vCPUs"},
		"too little memory":       {func(r *pb.CreateSandboxRequest) { r.MemoryMb = 2 }, connect.CodeInvalidArgument, "memory"},
		"too much memory":         {func(r *pb.CreateSandboxRequest) { r.MemoryMb = 1<<32 - 1 }, connect.CodeInvalidArgument, "memory"},
	} {
		t.Run(name, func(t *testing.T) {
			req := &pb.CreateSandboxRequest{SandboxId: string(wrenn.NewSandboxID())}
			tc.change(req)
			_, err := c.CreateSandbox(t.Context(), req)
			testkit.WantRPCCode(t, err, tc.code, tc.says)
		})
	}
	if left := c.list(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// The cause of a failure is the operator's; the caller hears that it was one.
func TestAFailureTellsNoCause(t *testing.T) {
	c := call(t, agenttest.Config{Hook: vmfake.FailAt(vmfake.StepBoot)})
	id := string(wrenn.NewSandboxID())
	_, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id})
	testkit.WantRPCCode(t, err, connect.CodeInternal, "internal error")
	if strings.Contains(err.Error(), "injected") {
		t.Errorf("it tells the cause: %v", err)
	}
	if left := c.list(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLimitsOfAHost(t *testing.T) {
	for name, limits := range map[string]sandbox.Limits{
		"limits.sandboxes":    {Sandboxes: 1},
		"limits.memory_mb":    {MemoryMiB: 700},
		"limits.disk_free_mb": {DiskFreeMiB: 1 << 40},
	} {
		t.Run(name, func(t *testing.T) {
			c := call(t, agenttest.Config{Limits: limits})
			var err error
			for range 2 {
				_, err = c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: string(wrenn.NewSandboxID())})
			}
			testkit.WantRPCCode(t, err, connect.CodeResourceExhausted, name)
		})
	}
	t.Run("network slots", func(t *testing.T) {
		c := call(t, agenttest.Config{Slots: 1})
		c.create(t)
		_, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: string(wrenn.NewSandboxID())})
		testkit.WantRPCCode(t, err, connect.CodeResourceExhausted, "network slots")
	})
}

// Creates of one id at once make one machine, and all hear of it.
func TestCreateAtOnce(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := string(wrenn.NewSandboxID())
	var creates sync.WaitGroup
	for range 6 {
		creates.Go(func() {
			if _, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id}); err != nil {
				t.Error(err)
			}
		})
	}
	creates.Wait()
	if n := len(c.agent.World.Running()); n != 1 {
		t.Errorf("%d machines", n)
	}
}

// A sandbox that ended by itself is told until it is acknowledged.
func TestAnEndIsTold(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	c.agent.World.Kill(c.agent.World.Running()[0])
	testkit.WaitUntil(t, "the end is told", func() bool {
		return c.list(t)[id].GetStatus() == pb.SandboxStatus_SANDBOX_STATUS_FAILED
	})
	if reason := c.list(t)[id].GetReason(); !strings.Contains(reason, "signal: killed") {
		t.Errorf("reason: %q", reason)
	}
	_, err := c.Exec(t.Context(), &pb.ExecRequest{SandboxId: id, Cmd: "true"})
	testkit.WantRPCCode(t, err, connect.CodeFailedPrecondition, "is failed: its machine ended")
	_, err = c.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id})
	testkit.Must(t, err)
	if left := c.list(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// What is in quarantine is reported, by the inventory and the metrics, and kept.
func TestQuarantineIsReported(t *testing.T) {
	c := call(t, agenttest.Config{})
	bad, good := c.create(t), c.create(t)
	c.agent.Stop(t)
	testkit.Must(t, os.WriteFile(c.agent.Journal(bad), []byte("{"), 0o600))
	c.agent.Start(t)
	c = connectTo(t, c.agent)
	seen := c.list(t)
	if got := seen[bad]; got.GetStatus() != pb.SandboxStatus_SANDBOX_STATUS_QUARANTINED || !strings.Contains(got.GetReason(), "journal cannot be read") {
		t.Errorf("inventory: %v", got)
	}
	if got := seen[good].GetStatus(); got != pb.SandboxStatus_SANDBOX_STATUS_RUNNING {
		t.Errorf("the other is %v", got)
	}
	_, err := c.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: bad})
	testkit.WantRPCCode(t, err, connect.CodeFailedPrecondition, "quarantined")
	_, err = c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: bad})
	testkit.WantRPCCode(t, err, connect.CodeAlreadyExists, "")
	registry := prometheus.NewRegistry()
	registry.MustRegister(server.NewCollector(c.agent.Manager))
	want := map[string]float64{"quarantined": 1, "running": 1, "failed": 0}
	families, err := registry.Gather()
	testkit.Must(t, err)
	for _, family := range families {
		if family.GetName() != "wrenn_sandboxes" {
			continue
		}
		for _, m := range family.GetMetric() {
			status := m.GetLabel()[0].GetValue()
			if n, ok := want[status]; ok && m.GetGauge().GetValue() != n {
				t.Errorf("%v sandboxes are %s, want %v", m.GetGauge().GetValue(), status, n)
			}
			delete(want, status)
		}
	}
	if len(want) != 0 {
		t.Errorf("no metric of %v", want)
	}
}

// A host without a warm pool says so: a series that is missing is no zero.
func TestTheStockIsInTheMetrics(t *testing.T) {
	c := call(t, agenttest.Config{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(server.NewCollector(c.agent.Manager))
	families, err := registry.Gather()
	testkit.Must(t, err)
	series := map[string]int{}
	for _, family := range families {
		series[family.GetName()] = len(family.GetMetric())
	}
	if series["wrenn_ready_machines"] != 1 || series["wrenn_ready_machine_claims_total"] != 2 {
		t.Errorf("series: %v", series)
	}
}

func TestAmbiguousLengths(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	conn, err := net.Dial("unix", strings.TrimPrefix(agent.URL(), "unix://"))
	testkit.Must(t, err)
	if diff := cmp.Diff([]int{http.StatusBadRequest}, testkit.Statuses(t, conn, fmt.Sprintf(testkit.Ambiguous, "/"))); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}
