package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "wrenn.dev/proto/gen/envd/process"
)

// input is where a process's input is written: a pipe, or the terminal.
type input struct {
	held chan struct{} // size 1; the lock, full while a writer holds it
	file *os.File      // nil when the process was started without input
	tty  bool
}

func newInput(file *os.File, tty bool) *input {
	return &input{held: make(chan struct{}, 1), file: file, tty: tty}
}

// send writes all of in and waits while the process does not read. Writes of
// several callers do not mix. When ctx ends first, part of it may have been written.
func (i *input) send(ctx context.Context, in *pb.ProcessInput) error {
	data, err := i.accept(in)
	if err != nil {
		return err
	}
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	_, err = i.write(ctx, data)
	return err
}

// sendAt is send for input at an offset in a session's input. What the process
// has already taken is left out, so a caller that does not know how far an earlier
// call came may repeat it.
func (i *input) sendAt(ctx context.Context, in *pb.ProcessInput, s *session, offset uint64) error {
	data, err := i.accept(in)
	if err != nil {
		return err
	}
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	taken := s.input.Load()
	if offset > taken {
		return connect.NewError(connect.CodeOutOfRange, fmt.Errorf("input at %d: what comes before it, from %d on, is missing", offset, taken))
	}
	n, err := i.write(ctx, data[min(taken-offset, uint64(len(data))):])
	s.input.Add(uint64(n))
	return err
}

// write returns how much was written. The caller must hold the lock.
func (i *input) write(ctx context.Context, data []byte) (n int, err error) {
	if len(data) == 0 {
		return 0, nil
	}
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = i.file.SetWriteDeadline(time.Unix(1, 0)) // a closed file does not block either
		close(cut)
	})
	n, err = i.file.Write(data)
	if !stop() {
		<-cut // else it might set its deadline after this, and fail every later write
		_ = i.file.SetWriteDeadline(time.Time{})
	}
	return n, inputError(ctx, err)
}

func (i *input) accept(in *pb.ProcessInput) ([]byte, error) {
	switch kind := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		switch {
		case i.tty:
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has a terminal: send pty input"))
		case i.file == nil:
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process was started without stdin"))
		}
		return kind.Stdin, nil
	case *pb.ProcessInput_Pty:
		if !i.tty {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has no terminal: send stdin input"))
		}
		return kind.Pty, nil
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no input given"))
	}
}

// end closes the input after the writes that are under way. Twice is allowed.
func (i *input) end(ctx context.Context) error {
	if i.tty {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("a terminal has no end of input: send the byte 0x04 instead"))
	}
	if i.file == nil {
		return nil
	}
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	i.file.Close()
	return nil
}

// close closes the input at once. Writes that are under way fail.
func (i *input) close() {
	if i.file != nil {
		i.file.Close()
	}
}

func (i *input) lock(ctx context.Context) error {
	select {
	case i.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	}
}

func (i *input) unlock() { <-i.held }

func inputError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return endOf(ctx)
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), errors.Is(err, os.ErrClosed):
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process's input is closed"))
	default:
		return connect.NewError(connect.CodeInternal, err)
	}
}
