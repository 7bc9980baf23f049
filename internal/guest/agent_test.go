package guest_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/user"
	"runtime"
	"testing"
	"time"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/guest/guesttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/proto/gen/envd/process"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// failing is a machine that allows nothing.
type failing struct{ guesttest.Inert }

func (failing) Now() time.Time          { return time.Now() }
func (failing) SetTime(time.Time) error { return os.ErrPermission }
func (failing) AddEntropy([]byte) error { return os.ErrPermission }

// No goroutine is left of programs that ended, nor of the agent.
func TestGoroutines(t *testing.T) {
	own, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	agent := guest.New(guest.Config{Machine: failing{}, Log: discard(), DefaultUser: own.Username, RunDir: t.TempDir()})
	server := httptest.NewServer(agent.Handler())
	e := &envd{base: server.URL, pid: os.Getpid(), http: server.Client(), ProcessClient: processconnect.NewProcessClient(server.Client(), server.URL)}
	e.run(t, sh("true"))
	served := runtime.NumGoroutine()
	for range 50 {
		e.run(t, sh("echo x"))
		e.run(t, ptyRequest("echo x", 80, 24))
	}
	testkit.WaitUntil(t, "no goroutine is left of the programs", func() bool { return runtime.NumGoroutine() <= served })
	// A program that runs, one without a reader, and one whose output another process holds.
	ctx, cancel := context.WithCancel(t.Context())
	e.begin(t, ctx, sh("sleep 1000"))
	e.begin(t, ctx, &process.StartRequest{Process: &process.ProcessConfig{Cmd: "yes"}})
	r := e.run(t, sh("setsid sleep 1000 >&2 & echo $!"))
	agent.Close()
	cancel()
	server.CloseClientConnections()
	server.Close()
	testkit.WaitUntil(t, "no goroutine is left of the agent", func() bool { return runtime.NumGoroutine() <= before })
	killLine(t, r.stdout.String())
}
