package server

import (
	"bytes"
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

func (s *server) WriteFile(ctx context.Context, req *pb.WriteFileRequest) (*pb.WriteFileResponse, error) {
	if len(req.GetContent()) > maxSmallFile {
		return nil, wrenn.Errorf(wrenn.Exhausted, "the file is larger than %d MB: stream it", maxSmallFile>>20)
	}
	sb, ctx, release, err := s.use(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer release()
	return &pb.WriteFileResponse{}, sb.Guest().WriteFile(ctx, req.GetUser(), req.GetPath(), bytes.NewReader(req.GetContent()))
}

func (s *server) ReadFile(ctx context.Context, req *pb.ReadFileRequest) (*pb.ReadFileResponse, error) {
	sb, ctx, release, err := s.use(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer release()
	file, err := sb.Guest().ReadFile(ctx, req.GetUser(), req.GetPath())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxSmallFile+1))
	if err != nil {
		return nil, broken(ctx, err)
	}
	if len(content) > maxSmallFile {
		return nil, wrenn.Errorf(wrenn.Exhausted, "the file is larger than %d MB: stream it", maxSmallFile>>20)
	}
	return &pb.ReadFileResponse{Content: content}, nil
}

func (s *server) WriteFileStream(ctx context.Context, stream *connect.ClientStream[pb.WriteFileStreamRequest]) (*pb.WriteFileStreamResponse, error) {
	if !stream.Receive() || stream.Msg().GetMeta() == nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "the first message must be meta")
	}
	meta := stream.Msg().GetMeta()
	sb, ctx, release, err := s.use(ctx, meta.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer release()
	content := &chunks{stream: stream}
	err = sb.Guest().WriteFile(ctx, meta.GetUser(), meta.GetPath(), content)
	if content.err != nil { // why the guest did not get the whole file
		return nil, content.err
	}
	return &pb.WriteFileStreamResponse{}, err
}

// chunks reads a file from the caller's messages. It returns io.EOF only when the
// caller ended the file, so that half a file never counts as a whole one.
type chunks struct {
	stream *connect.ClientStream[pb.WriteFileStreamRequest]
	rest   []byte
	err    error // other than io.EOF
}

func (c *chunks) Read(p []byte) (int, error) {
	if err := c.more(); err != nil {
		return 0, err
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// WriteTo is for net/http, which would read in pieces of 32 KiB.
func (c *chunks) WriteTo(w io.Writer) (written int64, err error) {
	for {
		err := c.more()
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(c.rest)
		written += int64(n)
		c.rest = c.rest[n:]
		if err != nil {
			return written, err
		}
	}
}

// more receives until rest has data. It returns io.EOF only at the end of the file.
func (c *chunks) more() error {
	for len(c.rest) == 0 {
		if c.err != nil {
			return c.err
		}
		if !c.stream.Receive() {
			if c.err = broke(c.stream.Err()); c.err != nil {
				return c.err
			}
			return io.EOF
		}
		if c.stream.Msg().GetMeta() != nil || c.stream.Msg().GetVolume() != nil {
			c.err = wrenn.Errorf(wrenn.Invalid, "meta came twice")
			return c.err
		}
		c.rest = c.stream.Msg().GetChunk()
	}
	return nil
}

// broke returns the error of an upload that broke off; nil for a whole one.
func broke(err error) error {
	switch {
	case err == nil:
		return nil
	case connect.CodeOf(err) == connect.CodeResourceExhausted:
		return wrenn.Errorf(wrenn.Exhausted, "a chunk is larger than %d MB: send smaller ones", maxMessage>>20)
	default:
		return &wrenn.Error{Code: wrenn.Canceled, Message: "the upload broke off; the file is as it was", Err: err}
	}
}

func (s *server) ReadFileStream(ctx context.Context, req *pb.ReadFileStreamRequest, stream *connect.ServerStream[pb.ReadFileStreamResponse]) error {
	sb, ctx, release, err := s.use(ctx, req.GetSandboxId())
	if err != nil {
		return err
	}
	defer release()
	file, err := sb.Guest().ReadFile(ctx, req.GetUser(), req.GetPath())
	if err != nil {
		return err
	}
	defer file.Close()
	return sendFile(stream, file, func(err error) error { return broken(ctx, err) })
}

// sendFile sends a file to its end. failed returns the call's error for one of reading.
func sendFile(stream *connect.ServerStream[pb.ReadFileStreamResponse], file io.Reader, failed func(error) error) error {
	buffer := make([]byte, copyBuffer)
	for {
		n, end := fill(file, buffer)
		if n > 0 {
			if err := stream.Send(&pb.ReadFileStreamResponse{Chunk: buffer[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(end, io.EOF):
			return nil
		case end != nil:
			return failed(end)
		}
	}
}

// fill reads until the buffer is full or r ends, and returns the error of r
// unchanged: io.ReadFull would turn a clean end into io.ErrUnexpectedEOF.
func fill(r io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var m int
		m, err = r.Read(buffer[n:])
		n += m
	}
	return n, err
}

// broken returns the error of a download that broke off.
func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if gone := envdclient.Gone(err); gone != nil {
		return gone
	}
	return &wrenn.Error{Code: wrenn.Unavailable, Message: "the file broke off on its way out of the sandbox", Err: err}
}
