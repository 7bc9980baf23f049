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
	store  *objectstest.Server
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
	p := &pair{agents: map[wrenn.HostID]*agenttest.Agent{}, store: server}
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

// hostsOf returns the host that has a sandbox, and the other one.
func (p *pair) hostsOf(id string) (has, other wrenn.HostID) {
	if _, there := p.seen("h1", id); there {
		return "h1", "h2"
	}
	return "h2", "h1"
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
	has, other := p.hostsOf(sb.ID)
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
	testkit.WaitUntil(t, "a copy is made on the other host", func() bool {
		copied, err = p.api.ForkSandbox(t.Context(), sb.ID, client.Fork{Count: 1, Checkpoint: cp.ID})
		testkit.Must(t, err)
		if _, there := p.seen(other, copied.Sandboxes[0].ID); there {
			return true
		}
		testkit.Must(t, p.api.DeleteSandbox(t.Context(), copied.Sandboxes[0].ID)) // it was not known yet that the host is cordoned
		return false
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

// TestMovesWithoutTheStore: while the store is down, a paused sandbox whose host is cordoned
// comes to the other host from its own, and is stored from there when the store is back.
func TestMovesWithoutTheStore(t *testing.T) {
	p := newPair(t)
	p.store.Kill(t)
	sb, err := p.api.CreateSandbox(t.Context(), client.CreateSandbox{})
	testkit.Must(t, err)
	has, other := p.hostsOf(sb.ID)
	_, err = p.api.PauseSandbox(t.Context(), sb.ID)
	testkit.Must(t, err)
	_, err = p.svc.CordonHost(t.Context(), service.Caller{}, has)
	testkit.Must(t, err)
	testkit.WaitUntil(t, "the sandbox is resumed on the other host", func() bool {
		began := time.Now()
		_, err := p.api.ResumeSandbox(t.Context(), sb.ID)
		testkit.Must(t, err)
		if _, there := p.seen(other, sb.ID); there {
			t.Logf("moved and resumed in %s", time.Since(began))
			return true
		}
		_, err = p.api.PauseSandbox(t.Context(), sb.ID) // it was not known yet that the host is cordoned
		testkit.Must(t, err)
		return false
	})
	p.runs(t, other, sb.ID)
	if _, there := p.seen(has, sb.ID); there {
		t.Error("the first host has it still")
	}
	_, err = p.api.PauseSandbox(t.Context(), sb.ID)
	testkit.Must(t, err)
	p.store.Start(t)
	testkit.WaitUntil(t, "it is stored", func() bool {
		seen, _ := p.seen(other, sb.ID)
		return seen.Stored.Key != ""
	})
}
