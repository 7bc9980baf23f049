//go:build root

package server_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// build follows a build to its end.
func (c caller) build(t *testing.T, req *pb.BuildTemplateRequest) (lines []string, done *pb.TemplateBuilt, err error) {
	t.Helper()
	stream, err := c.BuildTemplate(t.Context(), req)
	testkit.Must(t, err)
	defer stream.Close()
	for stream.Receive() {
		switch ev := stream.Msg().GetEvent().(type) {
		case *pb.BuildTemplateResponse_Line:
			lines = append(lines, ev.Line)
		case *pb.BuildTemplateResponse_Done:
			done = ev.Done
		}
	}
	return lines, done, stream.Err()
}

func (c caller) builds(t *testing.T) []string {
	t.Helper()
	res, err := c.ListTemplates(t.Context(), &pb.ListTemplatesRequest{})
	testkit.Must(t, err)
	return res.GetGenerations()
}

func TestTemplates(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := string(wrenn.NewBuildID())
	req := &pb.BuildTemplateRequest{Generation: id, Vcpus: 2, MemoryMb: 128, Env: map[string]string{"A": "b"}, ReadyCmd: "true"}
	lines, done, err := c.build(t, req)
	testkit.Must(t, err)
	if !slices.Contains(lines, "waiting for: true") || done.GetVcpus() != 2 || done.GetMemoryMb() != 128 || done.GetSizeBytes() == 0 || done.GetEnv()["A"] != "b" {
		t.Errorf("built %v, it said %q", done, lines)
	}
	if got := c.builds(t); !slices.Equal(got, []string{id}) {
		t.Errorf("builds: %q", got)
	}

	box := string(wrenn.NewSandboxID())
	want := &pb.CreateSandboxRequest{SandboxId: box, Template: "mine", Generation: id}
	for range 2 { // as after a lost answer
		_, err = c.CreateSandbox(t.Context(), want)
		testkit.Must(t, err)
	}
	if info := c.list(t)[box]; info.GetTemplate() != "mine" || info.GetVcpus() != 2 || info.GetMemoryMb() != 128 {
		t.Errorf("created %v", info)
	}
	fail := func(req *pb.CreateSandboxRequest, code connect.Code, text string) {
		t.Helper()
		req.SandboxId = string(wrenn.NewSandboxID())
		_, err := c.CreateSandbox(t.Context(), req)
		testkit.WantRPCCode(t, err, code, text)
		if c.list(t)[req.GetSandboxId()] != nil {
			t.Error("something of it is left")
		}
	}
	fail(&pb.CreateSandboxRequest{Template: "mine", Generation: id, Vcpus: 2, MemoryMb: 256}, connect.CodeInvalidArgument, "2 vCPUs and 128 MiB")
	fail(&pb.CreateSandboxRequest{Template: "mine", Generation: string(wrenn.NewBuildID())}, connect.CodeNotFound, `"mine" is not on this host`)
	fail(&pb.CreateSandboxRequest{Template: "mine", Generation: "../x"}, connect.CodeInvalidArgument, "build")
	fail(&pb.CreateSandboxRequest{Template: "mine"}, connect.CodeNotFound, "no template")

	for range 2 {
		_, err = c.DeleteTemplate(t.Context(), &pb.DeleteTemplateRequest{Generation: id})
		testkit.Must(t, err)
	}
	if got := c.builds(t); len(got) != 0 {
		t.Errorf("after the end: %q", got)
	}
	fail(&pb.CreateSandboxRequest{Template: "mine", Generation: id}, connect.CodeNotFound, "not on this host")
	_, err = c.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: box})
	testkit.Must(t, err)
	_, err = c.DeleteTemplate(t.Context(), &pb.DeleteTemplateRequest{Generation: "base-x"})
	testkit.WantRPCCode(t, err, connect.CodeInvalidArgument, "build")
}

// TestBuildIsGivenUp: who hangs up, and an agent that stops, leave nothing.
func TestBuildIsGivenUp(t *testing.T) {
	c := call(t, agenttest.Config{})
	for name, end := range map[string]func(hangUp context.CancelFunc){
		"hang up": func(hangUp context.CancelFunc) { hangUp() },
		"stop":    func(context.CancelFunc) { c.agent.Stop(t); c.agent.Start(t) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			stream, err := c.BuildTemplate(ctx, &pb.BuildTemplateRequest{
				Generation: string(wrenn.NewBuildID()), StartCmd: "echo it runs; exec sleep 1000", ReadyCmd: "false", ReadyTimeoutSec: 3600,
			})
			testkit.Must(t, err)
			defer stream.Close()
			for stream.Receive() && stream.Msg().GetLine() != "it runs" {
			}
			end(hangUp)
			for stream.Receive() {
			}
			if stream.Err() == nil {
				t.Error("the stream ended well")
			}
			testkit.WaitUntil(t, "no machine is left", func() bool { return len(c.agent.World.Running()) == 0 })
			if left := c.builds(t); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestBuildDoesNotWaitForItsReader: a program that prints without end does not
// fill memory, and who does not read does not stop the build.
func TestBuildDoesNotWaitForItsReader(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := string(wrenn.NewBuildID())
	stream, err := c.BuildTemplate(t.Context(), &pb.BuildTemplateRequest{
		Generation: id, StartCmd: `i=0; while [ $i -lt 40000 ]; do echo "$i is a line of a program that has much to say about itself, and says it again and again"; i=$((i+1)); done`,
	})
	testkit.Must(t, err)
	defer stream.Close()
	// The stream is not read while the build runs.
	testkit.WaitUntil(t, "the build is done", func() bool { return len(c.agent.Templates.Builds().IDs) != 0 })
	var lines []string
	var done *pb.TemplateBuilt
	for stream.Receive() {
		if line := stream.Msg().GetLine(); line != "" {
			lines = append(lines, line)
		}
		done = stream.Msg().GetDone()
	}
	if err := stream.Err(); err != nil || done == nil {
		t.Fatalf("the build ended with %v", err)
	}
	left := slices.ContainsFunc(lines, func(line string) bool { return strings.HasSuffix(line, "are left out)") })
	if len(lines) < 100 || len(lines) > 39_000 && !left {
		t.Errorf("%d lines were read, some left out: %v", len(lines), left)
	}
}
