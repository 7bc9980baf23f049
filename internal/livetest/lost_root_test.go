//go:build root

package livetest_test

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/livetest"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// pair is a control plane with two hosts that share a snapshot store of a real S3 server.
type pair struct {
	api    *client.Client
	svc    *service.Service // of an operator
	agents map[wrenn.HostID]*agenttest.Agent
}

func newPair(t *testing.T) *pair {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	server := objectstest.StartServer(t)
	store, err := objects.Open(server.URL(), server.Credentials, objects.Policy{})
	testkit.Must(t, err)
	cfg := controlplane.Defaults()
	cfg.Listen, cfg.MetricsListen, cfg.Database.URL = testkit.FreeAddress(t), "", pgtest.New(t)
	cfg.Secrets.KeyFiles = []string{filepath.Join(t.TempDir(), "secrets.key")}
	testkit.Must(t, vault.Create(cfg.Secrets.KeyFiles[0]))
	p := &pair{agents: map[wrenn.HostID]*agenttest.Agent{}}
	for _, id := range []wrenn.HostID{"h1", "h2"} {
		p.agents[id] = agenttest.New(t, agenttest.Config{Log: log, Slots: 6, Objects: store})
		cfg.Hosts = append(cfg.Hosts, controlplane.Host{ID: string(id), URL: p.agents[id].URL()})
	}
	key := livetest.MakeKey(t, cfg, log)
	p.api, err = client.New(client.Config{URL: "http://" + cfg.Listen, Key: key})
	testkit.Must(t, err)
	running := &plane{cfg: cfg}
	running.start(t)
	t.Cleanup(func() { running.kill(t) })
	testkit.WaitNoError(t, "the control plane is ready", func() error { return p.api.Ready(t.Context()) })
	svc, closeStore, err := controlplane.Open(t.Context(), cfg, log)
	testkit.Must(t, err)
	t.Cleanup(closeStore)
	p.svc = svc
	return p
}

// seen returns what a host has of a sandbox.
func (p *pair) seen(on wrenn.HostID, id string) (wrenn.ObservedSandbox, bool) {
	sb, err := p.agents[on].Manager.Get(wrenn.SandboxID(id))
	if err != nil {
		return wrenn.ObservedSandbox{}, false
	}
	return sb.Info().ObservedSandbox, true
}

// runs checks that a sandbox runs on that host, and executes commands.
func (p *pair) runs(t *testing.T, on wrenn.HostID, id string) {
	t.Helper()
	if seen, ok := p.seen(on, id); !ok || seen.State != wrenn.ObservedRunning {
		t.Errorf("host %s has %+v", on, seen)
	}
	result, err := p.api.Exec(t.Context(), id, client.Command{Cmd: "echo", Args: []string{"here"}})
	if err != nil || string(result.Stdout) != "here\n" {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestLostWithItsHost: what is stored of a sandbox is of use without its host. Its settings
// reach the host; copies of a checkpoint are made on the other host while its own is cordoned;
// after the loss of the host the sandbox continues there from the checkpoint, and the copy on a
// host that was not gone after all is void.
func TestLostWithItsHost(t *testing.T) {
	p := newPair(t)
	sb, err := p.api.CreateSandbox(t.Context(), client.CreateSandbox{})
	testkit.Must(t, err)
	has, other := wrenn.HostID("h1"), wrenn.HostID("h2")
	if _, there := p.seen(has, sb.ID); !there {
		has, other = other, has
	}
	_, err = p.api.ChangeSandbox(t.Context(), sb.ID, client.ChangeSandbox{OnTimeout: client.PauseOnTimeout, CheckpointEvery: new(time.Hour)})
	testkit.Must(t, err)
	if seen, _ := p.seen(has, sb.ID); seen.Settings == nil || seen.Settings.CheckpointEvery != time.Hour || seen.OnTimeout != wrenn.PauseOnTimeout {
		t.Errorf("its host follows %+v", seen.Settings)
	}
	cp, err := p.api.CreateCheckpoint(t.Context(), sb.ID, "before")
	testkit.Must(t, err)
	testkit.WaitUntil(t, "the row has the stored checkpoint", func() bool {
		now, err := p.api.Sandbox(t.Context(), sb.ID)
		return err == nil && !now.CheckpointStoredAt.IsZero()
	})

	_, err = p.svc.CordonHost(t.Context(), service.Caller{}, has)
	testkit.Must(t, err)
	var copied *client.Forked
	testkit.WaitNoError(t, "a copy is made on the other host", func() (err error) {
		copied, err = p.api.ForkSandbox(t.Context(), sb.ID, client.Fork{Count: 1, Checkpoint: cp.ID})
		return err
	})
	p.runs(t, other, copied.Sandboxes[0].ID)

	p.agents[has].Stop(t)
	_, err = p.svc.LoseHost(t.Context(), service.Caller{}, has)
	testkit.Must(t, err)
	failed, err := p.api.Sandbox(t.Context(), sb.ID)
	if err != nil || failed.State != client.Failed {
		t.Fatalf("%+v, %v", failed, err)
	}
	left, err := p.api.Checkpoints(t.Context(), sb.ID)
	if err != nil || len(left.Checkpoints) != 1 || left.Checkpoints[0].ID != cp.ID {
		t.Errorf("%+v, %v", left, err)
	}
	_, err = p.api.RestoreCheckpoint(t.Context(), sb.ID, cp.ID)
	if err != nil { // the control plane may not have read yet that the host is lost: then it is paused
		testkit.WaitNoError(t, "the sandbox is resumed at the checkpoint", func() error {
			_, err := p.api.ResumeSandbox(t.Context(), sb.ID)
			return err
		})
	}
	p.runs(t, other, sb.ID)
	testkit.WaitUntil(t, "its new host follows its settings", func() bool {
		seen, _ := p.seen(other, sb.ID)
		return seen.Settings != nil && seen.Settings.CheckpointEvery == time.Hour
	})
	restored, err := p.api.Checkpoints(t.Context(), sb.ID)
	if err != nil || len(restored.Checkpoints) != 1 || restored.Checkpoints[0].Name != "before" {
		t.Errorf("%+v, %v", restored, err)
	}

	p.agents[has].Start(t) // it was not gone
	testkit.WaitUntil(t, "the old copy is paused for good", func() bool {
		old, there := p.seen(has, sb.ID)
		return there && old.State == wrenn.ObservedPaused && old.SupersededBy > old.Epoch
	})
	p.runs(t, other, sb.ID)
}
