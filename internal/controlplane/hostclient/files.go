package hostclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

var errStalled = errors.New("nothing moved for too long")

func stalled(peer string) error {
	return &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: peer + " did not answer in time", Err: errStalled}
}

// watchdog ends a transfer when the host sends nothing for too long. The time that
// the caller takes does not count.
type watchdog struct {
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func newWatchdog(ctx context.Context, limit time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{limit: limit, cancel: cancel}
	w.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	w.timer.Stop()
	return ctx, w
}

// during limits the time that the host takes in f.
func (w *watchdog) during(f func()) {
	w.timer.Reset(w.limit)
	defer w.timer.Stop()
	f()
}

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// transferError returns err as the error of a transfer in ctx.
func (c *Client) transferError(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return stalled(c.peer)
	}
	return wire.FromConnect(c.peer, err)
}

// Write writes content to a file, which changes as a whole at the end. When
// content ends with an error the file stays as it was, and Write returns an error
// that wraps it.
func (c *Client) Write(ctx context.Context, id wrenn.SandboxID, user, path string, content io.Reader) error {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop() // without CloseAndReceive the host sees a broken stream, never a whole file
	stream, err := c.streams.WriteFileStream(c.meant(ctx))
	if err != nil {
		return c.transferError(ctx, err)
	}
	meta := &pb.WriteFileMeta{SandboxId: string(id), Path: path, User: user}
	dog.during(func() {
		err = stream.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Meta{Meta: meta}})
	})
	if err == nil {
		var readErr error
		if readErr, err = sendChunks(stream, dog, content); readErr != nil {
			return fmt.Errorf("read what to write: %w", readErr)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return c.transferError(ctx, err)
	}
	// io.EOF of Send means that the host has answered already, with the reason.
	dog.during(func() { _, err = stream.CloseAndReceive() })
	return c.transferError(ctx, err)
}

// writeStream is where a file is written to.
type writeStream interface {
	Send(*pb.WriteFileStreamRequest) error
}

func sendChunks(stream writeStream, dog *watchdog, content io.Reader) (readErr, sendErr error) {
	// Forms are read in pieces of 4 KiB: a message for each cost the agent 7 s of CPU time per GiB.
	buf := make([]byte, uploadChunk)
	for {
		n, err := fill(content, buf)
		if n > 0 {
			dog.during(func() {
				sendErr = stream.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Chunk{Chunk: buf[:n]}})
			})
		}
		switch {
		case sendErr != nil:
			return nil, sendErr
		case errors.Is(err, io.EOF):
			return nil, nil
		case err != nil:
			return err, nil
		}
	}
}

// fill reads until buf is full or r ends, and returns the error of r unchanged:
// io.ReadFull would turn a clean end into io.ErrUnexpectedEOF.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read opens a file. A file that cannot be read is an error of this call. The
// caller closes the reader. A broken transfer is an error of its Read, never io.EOF.
func (c *Client) Read(ctx context.Context, id wrenn.SandboxID, user, path string) (io.ReadCloser, error) {
	return c.download(ctx, func(ctx context.Context) (*connect.ServerStreamForClient[pb.ReadFileStreamResponse], error) {
		return c.downloads.ReadFileStream(c.meant(ctx), &pb.ReadFileStreamRequest{SandboxId: string(id), Path: path, User: user})
	})
}

// download returns the file that open asks for, when its first chunk has come.
func (c *Client) download(ctx context.Context, open func(context.Context) (*connect.ServerStreamForClient[pb.ReadFileStreamResponse], error)) (io.ReadCloser, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	r := &reader{ctx: ctx, client: c, dog: dog}
	var err error
	dog.during(func() { // until the host's first message
		r.stream, err = open(ctx)
	})
	if err != nil {
		dog.stop()
		return nil, c.transferError(ctx, err)
	}
	if r.next(); r.err != nil && !errors.Is(r.err, io.EOF) {
		dog.stop()
		return nil, r.err
	}
	return r, nil
}

type reader struct {
	ctx    context.Context // of the transfer; its cause is errStalled when that stalled
	client *Client
	stream *connect.ServerStreamForClient[pb.ReadFileStreamResponse]
	dog    *watchdog
	whole  []byte // the chunk as it was received
	chunk  []byte // its unread rest
	err    error
}

// next receives a chunk, or sets err.
func (r *reader) next() {
	r.client.codec.recycle(r.whole)
	r.whole, r.chunk = nil, nil
	more := false
	r.dog.during(func() { more = r.stream.Receive() })
	switch {
	case more:
		r.whole = r.stream.Msg().GetChunk()
		r.chunk = r.whole
	case r.stream.Err() != nil:
		r.err = r.client.transferError(r.ctx, r.client.old(r.stream.Err()))
	default:
		r.err = io.EOF
	}
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.chunk) == 0 && r.err == nil {
		r.next()
	}
	if len(r.chunk) == 0 {
		return 0, r.err
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// WriteTo is for io.Copy: each chunk is written as it was received, without another
// buffer.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	for {
		for len(r.chunk) == 0 && r.err == nil {
			r.next()
		}
		if len(r.chunk) == 0 {
			if errors.Is(r.err, io.EOF) {
				return written, nil
			}
			return written, r.err
		}
		n, err := w.Write(r.chunk)
		written += int64(n)
		r.chunk = r.chunk[n:]
		if err != nil {
			return written, err
		}
	}
}

func (r *reader) Close() error {
	if errors.Is(r.err, io.EOF) {
		r.dog.during(func() { _ = r.stream.Close() }) // it was read to its end: the next download can use its connection
	}
	r.dog.stop()
	return nil
}
