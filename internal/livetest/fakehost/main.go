// Command fakehost is a host whose guests are processes of this machine, and its
// agent, for tests that run those of two builds: see agenttest. It needs root.
//
// Its only argument is the configuration, in JSON. It prints a line when the agent
// answers, and ends with its standard input.
package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/testkit"
)

// config is what a test says of a host. Tests of the next build write it for this
// program, so fields keep their names.
type config struct {
	Listen   string            // where the agent serves: unix:PATH
	Slots    int               // sandboxes at a time
	Labels   map[string]string // of the host
	Store    string            // the directory that is the snapshot store
	StateDir string            // what the host begins with, if set
	KeepIn   string            // the directory to which the host's state is copied at the end
}

func main() {
	var cfg config
	if err := json.Unmarshal([]byte(os.Args[1]), &cfg); err != nil {
		panic(err)
	}
	os.Args = os.Args[:1]
	all := func(_, _ string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "fakehost", F: cfg.serve}}, nil, nil)
}

// serve is the host's life.
func (cfg config) serve(t *testing.T) {
	t.Helper()
	store, err := objects.OpenDir(cfg.Store)
	testkit.Must(t, err)
	a := agenttest.New(t, agenttest.Config{
		Log:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Slots: cfg.Slots, Listen: server.Listen{Address: cfg.Listen}, StateDir: cfg.StateDir,
		Facts: wrenn.HostFacts{Labels: cfg.Labels}, Objects: store,
	})
	_, err = os.Stdout.WriteString("serves\n")
	testkit.Must(t, err)
	_, err = io.Copy(io.Discard, os.Stdin)
	testkit.Must(t, err)
	a.Stop(t)
	stateDir := filepath.Join(filepath.Dir(a.Journal("any")), "../..")
	testkit.Must(t, os.CopyFS(cfg.KeepIn, os.DirFS(stateDir)))
}
