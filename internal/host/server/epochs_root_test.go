//go:build root

package server_test

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/tunnel"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// TestEpochHeader: calls of all kinds are refused for another epoch, and those of callers
// that name none are not.
func TestEpochHeader(t *testing.T) {
	c := call(t, agenttest.Config{Slots: 4})
	id := string(wrenn.NewSandboxID())
	_, err := c.CreateSandbox(t.Context(), &pb.CreateSandboxRequest{SandboxId: id, Epoch: 2})
	testkit.Must(t, err)
	if got := c.list(t)[id].GetEpoch(); got != 2 {
		t.Fatalf("it has epoch %d", got)
	}
	for text, want := range map[string]connect.Code{"": 0, "2": 0, "1": connect.CodeUnavailable, "3": connect.CodeUnavailable, "x": connect.CodeInvalidArgument, "-1": connect.CodeInvalidArgument} {
		ctx, info := connect.NewClientContext(t.Context())
		info.RequestHeader().Set("Wrenn-Epoch", text)
		_, err := c.Exec(ctx, &pb.ExecRequest{SandboxId: id, Cmd: "true", User: "root"})
		if code := codeOf(err); code != want {
			t.Errorf("a call for epoch %q: %v", text, err)
		}
		ctx, info = connect.NewClientContext(t.Context())
		info.RequestHeader().Set("Wrenn-Epoch", text)
		stream, err := c.ReadConsole(ctx, &pb.ReadConsoleRequest{SandboxId: id})
		testkit.Must(t, err)
		for stream.Receive() {
		}
		if code := codeOf(stream.Err()); code != want {
			t.Errorf("a stream for epoch %q: %v", text, stream.Err())
		}
		testkit.Must(t, stream.Close())
		if refusal := c.tunnelFor(t, id, text); (refusal.Status == http.StatusBadGateway) != (want == 0) { // which is the closed port
			t.Errorf("a tunnel for epoch %q: %s %s", text, refusal, refusal.Body)
		}
	}
	_, err = c.ForkSandbox(t.Context(), &pb.ForkSandboxRequest{SandboxId: id, NewIds: []string{string(wrenn.NewSandboxID())}, Epoch: 1})
	testkit.Must(t, err)
	for copied, info := range c.list(t) {
		if copied != id && info.GetEpoch() != 1 {
			t.Errorf("the copy has epoch %d", info.GetEpoch())
		}
	}
}

func codeOf(err error) connect.Code {
	if err == nil {
		return 0
	}
	return connect.CodeOf(err)
}

// tunnelFor asks for a tunnel to a closed port, for an epoch, and returns the refusal.
func (c caller) tunnelFor(t *testing.T, id, epoch string) *tunnel.Refusal {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(c.agent.URL(), "unix://"))
	testkit.Must(t, err)
	defer conn.Close()
	req, err := http.NewRequest(http.MethodGet, "http://agent/tunnel/"+id+"/9", nil)
	testkit.Must(t, err)
	req.Header.Set("Wrenn-Epoch", epoch)
	_, err = tunnel.Ask(conn, req)
	refusal, ok := errors.AsType[*tunnel.Refusal](err)
	if !ok {
		t.Fatalf("not a refusal: %v", err)
	}
	return refusal
}
