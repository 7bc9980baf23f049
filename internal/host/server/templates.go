package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/host/template"
	pb "wrenn/proto/gen/hostagent/v1"
)

const (
	// maxLines bounds what a build has said and its caller has not read: a build
	// does not wait for a slow reader, and what does not fit is left out.
	maxLines = 512
	// keepaliveEvery is the silence after which a caller is told that the build goes on.
	keepaliveEvery = 15 * time.Second
)

var errBuildCut = wrenn.Errorf(wrenn.Unavailable, "the host's agent stopped while it built: build again")

// BuildTemplate passes on what the build says, and its end.
func (s *server) BuildTemplate(ctx context.Context, req *pb.BuildTemplateRequest, stream *connect.ServerStream[pb.BuildTemplateResponse]) error {
	spec, err := specOf(req)
	if err != nil {
		return err
	}
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	stop := onClosing(s.closing, func() { hangUp(errBuildCut) })
	defer stop()
	work := startBuild(ctx, s.cfg.Templates, spec)
	err = work.tell(stream)
	hangUp(nil)
	<-work.ended // nothing of it is left when the caller hears
	return err
}

// build is a build at work.
type build struct {
	said  chan string
	lost  atomic.Int64  // lines that did not fit into said
	ended chan struct{} // closed when built and err are there
	built template.Built
	err   error
}

func startBuild(ctx context.Context, builder *template.Builder, spec template.Spec) *build {
	b := &build{said: make(chan string, maxLines), ended: make(chan struct{})}
	go func() {
		defer close(b.ended)
		b.built, b.err = builder.Build(ctx, spec, b.say)
	}()
	return b
}

func (b *build) say(line string) {
	select {
	case b.said <- line:
	default:
		b.lost.Add(1)
	}
}

// tell returns when the build has ended and its caller knows, or when the caller is gone.
func (b *build) tell(stream *connect.ServerStream[pb.BuildTemplateResponse]) error {
	beat := time.NewTicker(keepaliveEvery)
	defer beat.Stop()
	for {
		var err error
		select {
		case line := <-b.said:
			err = b.send(stream, line)
			beat.Reset(keepaliveEvery)
		case <-beat.C:
			err = stream.Send(&pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Keepalive{Keepalive: true}})
		case <-b.ended:
			return b.finish(stream)
		}
		if err != nil {
			return err
		}
	}
}

func (b *build) send(stream *connect.ServerStream[pb.BuildTemplateResponse], line string) error {
	if n := b.lost.Swap(0); n > 0 {
		note := fmt.Sprintf("(%d lines came faster than they were read, and are left out)", n)
		if err := stream.Send(&pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Line{Line: note}}); err != nil {
			return err
		}
	}
	return stream.Send(&pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Line{Line: line}})
}

// finish tells what is left, and the end.
func (b *build) finish(stream *connect.ServerStream[pb.BuildTemplateResponse]) error {
	for len(b.said) > 0 {
		if err := b.send(stream, <-b.said); err != nil {
			return err
		}
	}
	if b.err != nil {
		return b.err
	}
	return stream.Send(&pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Done{Done: &pb.TemplateBuilt{
		Vcpus: uint32(b.built.Shape.VCPUs), MemoryMb: uint32(b.built.Shape.MemoryMiB), SizeBytes: uint64(b.built.Bytes),
		Env: b.built.Env, Digest: b.built.Digest,
	}}})
}

func specOf(req *pb.BuildTemplateRequest) (template.Spec, error) {
	spec := template.Spec{
		Generation: req.GetGeneration(), Image: req.GetImage(), OCI: req.GetContainer().GetRef(),
		Access: template.Access{Username: req.GetContainer().GetUsername(), Password: req.GetContainer().GetPassword()},
		Env:    req.GetEnv(), Start: req.GetStartCmd(), Ready: req.GetReadyCmd(), ReadyTimeout: seconds(req.GetReadyTimeoutSec()),
	}
	switch source := req.GetSource().(type) {
	case *pb.BuildTemplateRequest_SandboxId:
		id, err := wrenn.ParseSandboxID(source.SandboxId)
		if err != nil {
			return spec, err
		}
		spec.Sandbox = id
		if req.GetVcpus() != 0 || req.GetMemoryMb() != 0 {
			spec.Shape = shapeOf(req.GetVcpus(), req.GetMemoryMb()) // which the builder refuses
		}
		return spec, nil
	case *pb.BuildTemplateRequest_Container:
		if spec.OCI == "" {
			return spec, wrenn.Errorf(wrenn.Invalid, "the container image has no name")
		}
	case *pb.BuildTemplateRequest_Image:
		if spec.Image == "" {
			return spec, wrenn.Errorf(wrenn.Invalid, "the image has no name")
		}
	}
	spec.Shape = shapeOf(req.GetVcpus(), req.GetMemoryMb())
	return spec, nil
}

// shapeOf is what a request asks for, or the default.
func shapeOf(vcpus, memoryMB uint32) sandbox.Shape {
	shape := sandbox.Shape{VCPUs: defaultVCPUs, MemoryMiB: defaultMemoryMiB}
	if vcpus != 0 {
		shape.VCPUs = int(vcpus)
	}
	if memoryMB != 0 {
		shape.MemoryMiB = int(memoryMB)
	}
	return shape
}

func (s *server) DeleteTemplate(ctx context.Context, req *pb.DeleteTemplateRequest) (*pb.DeleteTemplateResponse, error) {
	return &pb.DeleteTemplateResponse{}, s.cfg.Templates.Delete(ctx, req.GetGeneration())
}

func (s *server) ListTemplates(context.Context, *pb.ListTemplatesRequest) (*pb.ListTemplatesResponse, error) {
	return &pb.ListTemplatesResponse{Generations: s.cfg.Templates.Generations()}, nil
}

// generationOf is what a sandbox is to be made from, when that is a generation
// of a template, and the shape that it has then.
func (s *server) generationOf(ctx context.Context, req *pb.CreateSandboxRequest) (shape sandbox.Shape, err error) {
	if err := template.CheckGeneration(req.GetGeneration()); err != nil {
		return shape, err
	}
	kept, err := s.cfg.Manager.KeptSnapshot(ctx, req.GetGeneration())
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return shape, wrenn.Errorf(wrenn.NotFound, "template %.64q is not on this host (generation %s)", req.GetTemplate(), req.GetGeneration())
	}
	return kept.Shape, err
}
