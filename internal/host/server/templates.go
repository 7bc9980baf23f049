package server

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

const (
	// maxLines bounds the lines of a build that its caller has not read: a build
	// does not wait for a slow reader, and further lines are left out.
	maxLines = 512
	// stepWait is how long the beginning of a step waits for a slow reader.
	stepWait = 5 * time.Second
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
	events  chan wrenn.BuildEvent
	dropped atomic.Int64  // lines that did not fit into events
	ended   chan struct{} // closed when built and err are set
	built   wrenn.BuildResult
	err     error
}

func startBuild(ctx context.Context, builder *template.Builder, job wrenn.BuildRequest) *build {
	b := &build{events: make(chan wrenn.BuildEvent, maxLines), ended: make(chan struct{})}
	go func() {
		defer close(b.ended)
		b.built, b.err = builder.Build(ctx, job, b.add)
	}()
	return b
}

// add passes an event on. Steps wait for a slow reader for a moment: they are few, and
// the last one is part of the result.
func (b *build) add(ev wrenn.BuildEvent) {
	if ev.Step == "" {
		select {
		case b.events <- ev:
		default:
			b.dropped.Add(1)
		}
		return
	}
	select {
	case b.events <- ev:
	case <-time.After(stepWait):
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
		case ev := <-b.events:
			err = b.send(stream, ev)
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

func (b *build) send(stream *buildStream, ev wrenn.BuildEvent) error {
	if n := b.dropped.Swap(0); n > 0 {
		notice := fmt.Sprintf("(%d lines came faster than they were read, and are left out)", n)
		if err := stream.Send(hostwire.BuildEvent(wrenn.BuildEvent{Line: notice})); err != nil {
			return err
		}
	}
	return stream.Send(hostwire.BuildEvent(ev))
}

// finish sends the remaining lines and the result.
func (b *build) finish(stream *buildStream) error {
	for len(b.events) > 0 {
		if err := b.send(stream, <-b.events); err != nil {
			return err
		}
	}
	if b.err != nil {
		return b.err
	}
	return stream.Send(hostwire.BuildEvent(wrenn.BuildEvent{Built: &b.built}))
}

// PutBuildFiles stores what the stream brings.
func (s *server) PutBuildFiles(ctx context.Context, stream *connect.ClientStream[pb.PutBuildFilesRequest]) (*pb.PutBuildFilesResponse, error) {
	if !stream.Receive() {
		return nil, cmp.Or(stream.Err(), errNoFiles)
	}
	team, hash, err := hostwire.ParseBuildFiles(stream.Msg().GetFiles())
	if err != nil {
		return nil, err
	}
	return &pb.PutBuildFilesResponse{}, s.cfg.Templates.PutFiles(ctx, team, hash, &filesReader{stream: stream})
}

var errNoFiles error = wrenn.Errorf(wrenn.Invalid, "the first message must name the files")

// filesReader reads the chunks of an upload.
type filesReader struct {
	stream *connect.ClientStream[pb.PutBuildFilesRequest]
	chunk  []byte
}

func (r *filesReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		if !r.stream.Receive() {
			return 0, cmp.Or(r.stream.Err(), io.EOF)
		}
		r.chunk = r.stream.Msg().GetChunk()
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// FindBuildFiles reports whether the files are here.
func (s *server) FindBuildFiles(_ context.Context, req *pb.FindBuildFilesRequest) (*pb.FindBuildFilesResponse, error) {
	team, hash, err := hostwire.ParseBuildFiles(req.GetFiles())
	if err != nil {
		return nil, err
	}
	return &pb.FindBuildFilesResponse{Present: s.cfg.Templates.HasFiles(team, hash)}, nil
}

func (s *server) DeleteTemplate(ctx context.Context, req *pb.DeleteTemplateRequest) (*pb.DeleteTemplateResponse, error) {
	id, err := wrenn.ParseBuildID(req.GetGeneration())
	if err != nil {
		return nil, err
	}
	return &pb.DeleteTemplateResponse{}, s.cfg.Templates.Delete(ctx, id, wrenn.TeamID(req.GetTeam()))
}

func (s *server) ListTemplates(context.Context, *pb.ListTemplatesRequest) (*pb.ListTemplatesResponse, error) {
	return hostwire.HostBuilds(s.cfg.Templates.Builds()), nil
}
