package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/host/template"
	"wrenn/internal/hostwire"
	pb "wrenn/proto/gen/hostagent/v1"
)

const (
	// maxLines bounds the lines of a build that its caller has not read: a build
	// does not wait for a slow reader, and further lines are left out.
	maxLines = 512
	// keepaliveEvery is how long a build's stream may be silent.
	keepaliveEvery = 15 * time.Second
)

var errBuildInterrupted = wrenn.Errorf(wrenn.Unavailable, "the host's agent stopped during the build: build again")

// buildStream is the caller's side of a build.
type buildStream = connect.ServerStream[pb.BuildTemplateResponse]

// BuildTemplate streams the log of a build, and its result.
func (s *server) BuildTemplate(ctx context.Context, msg *pb.BuildTemplateRequest, stream *buildStream) error {
	job, err := hostwire.ParseBuildRequest(msg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := onClosing(s.closing, func() { cancel(errBuildInterrupted) })
	defer stop()
	b := startBuild(ctx, s.cfg.Templates, job)
	err = b.stream(stream)
	cancel(nil)
	<-b.ended // when the caller gets the answer nothing of a canceled build is left
	return err
}

// build is a running build.
type build struct {
	lines   chan string
	dropped atomic.Int64  // lines that did not fit into lines
	ended   chan struct{} // closed when built and err are set
	built   wrenn.BuildResult
	err     error
}

func startBuild(ctx context.Context, builder *template.Builder, job wrenn.BuildRequest) *build {
	b := &build{lines: make(chan string, maxLines), ended: make(chan struct{})}
	go func() {
		defer close(b.ended)
		b.built, b.err = builder.Build(ctx, job, b.log)
	}()
	return b
}

func (b *build) log(line string) {
	select {
	case b.lines <- line:
	default:
		b.dropped.Add(1)
	}
}

// stream sends the events of the build. It returns when the build has ended and
// its result is sent, or when the caller is gone.
func (b *build) stream(stream *buildStream) error {
	silence := time.NewTicker(keepaliveEvery)
	defer silence.Stop()
	for {
		var err error
		select {
		case line := <-b.lines:
			err = b.sendLine(stream, line)
			silence.Reset(keepaliveEvery)
		case <-silence.C:
			err = stream.Send(hostwire.BuildEvent(wrenn.BuildEvent{Keepalive: true}))
		case <-b.ended:
			return b.finish(stream)
		}
		if err != nil {
			return err
		}
	}
}

func (b *build) sendLine(stream *buildStream, line string) error {
	if n := b.dropped.Swap(0); n > 0 {
		notice := fmt.Sprintf("(%d lines came faster than they were read, and are left out)", n)
		if err := stream.Send(hostwire.BuildEvent(wrenn.BuildEvent{Line: notice})); err != nil {
			return err
		}
	}
	return stream.Send(hostwire.BuildEvent(wrenn.BuildEvent{Line: line}))
}

// finish sends the remaining lines and the result.
func (b *build) finish(stream *buildStream) error {
	for len(b.lines) > 0 {
		if err := b.sendLine(stream, <-b.lines); err != nil {
			return err
		}
	}
	if b.err != nil {
		return b.err
	}
	return stream.Send(hostwire.BuildEvent(wrenn.BuildEvent{Built: &b.built}))
}

func (s *server) DeleteTemplate(ctx context.Context, req *pb.DeleteTemplateRequest) (*pb.DeleteTemplateResponse, error) {
	id, err := wrenn.ParseBuildID(req.GetGeneration())
	if err != nil {
		return nil, err
	}
	return &pb.DeleteTemplateResponse{}, s.cfg.Templates.Delete(ctx, id)
}

func (s *server) ListTemplates(context.Context, *pb.ListTemplatesRequest) (*pb.ListTemplatesResponse, error) {
	resp := &pb.ListTemplatesResponse{}
	for _, id := range s.cfg.Templates.Builds() {
		resp.Generations = append(resp.Generations, string(id))
	}
	return resp, nil
}
