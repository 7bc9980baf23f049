package hosttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"

	"wrenn.dev"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

const (
	chunkSize = 64 << 10
)

// process is a command that runs. The commands are: echo WORD…, printenv
// NAME, cat (input to output), exit N, sleep (until a signal), yes (output
// without end).
type process struct {
	pid    uint32
	cmd    string
	args   []string
	env    map[string]string
	stdin  chan []byte   // one frame, then it holds up the sender
	eof    chan struct{} // closed at the end of the input
	once   sync.Once     // closes eof
	end    chan struct{} // closed by kill
	killed sync.Once
}

func (b *sandbox) kill() {
	for _, p := range b.processes {
		p.signal()
	}
}

func (p *process) signal()  { p.killed.Do(func() { close(p.end) }) }
func (p *process) closeIn() { p.once.Do(func() { close(p.eof) }) }

// run runs the command to its end; emit blocks while the caller does not read.
func (p *process) run(ctx context.Context, emit func([]byte) error) (int32, string, error) {
	switch p.cmd {
	case "echo":
		return p.exit(0, emit([]byte(strings.Join(p.args, " ")+"\n")))
	case "printenv":
		return p.exit(0, emit([]byte(p.env[strings.Join(p.args, "")]+"\n")))
	case "exit":
		n, err := strconv.ParseInt(strings.Join(p.args, ""), 10, 32)
		return p.exit(int32(n), err)
	case "cat":
		return p.cat(ctx, emit)
	case "sleep":
		select {
		case <-p.end:
			return -1, "signal: killed", nil
		case <-ctx.Done():
			return 0, "", ctx.Err()
		}
	case "yes":
		for ctx.Err() == nil {
			if err := emit(bytes.Repeat([]byte("y\n"), chunkSize/2)); err != nil {
				return 0, "", err
			}
		}
		return 0, "", ctx.Err()
	}
	return 0, "", wrenn.Errorf(wrenn.NotFound, "%s: command not found", p.cmd)
}

func (*process) exit(code int32, err error) (int32, string, error) {
	return code, fmt.Sprintf("exit status %d", code), err
}

func (p *process) cat(ctx context.Context, emit func([]byte) error) (int32, string, error) {
	for {
		select {
		case in := <-p.stdin:
			if err := emit(in); err != nil {
				return 0, "", err
			}
		case <-p.eof:
			select {
			case in := <-p.stdin: // what came before the end
				if err := emit(in); err != nil {
					return 0, "", err
				}
			default:
				return p.exit(0, nil)
			}
		case <-p.end:
			return -1, "signal: killed", nil
		case <-ctx.Done():
			return 0, "", ctx.Err()
		}
	}
}

func (a *Agent) spawn(id, cmd string, args []string, env map[string]string) (*process, error) {
	p := &process{cmd: cmd, args: args, stdin: make(chan []byte, 1), eof: make(chan struct{}), end: make(chan struct{})}
	err := a.locked(func() error {
		b, err := a.running(id)
		if err != nil {
			return err
		}
		p.env = map[string]string{}
		maps.Copy(p.env, b.env)
		maps.Copy(p.env, env)
		p.pid = uint32(1000 + len(b.processes))
		b.processes[p.pid] = p
		return nil
	})
	return p, err
}

// Exec runs a command with its whole input.
func (a *Agent) Exec(ctx context.Context, req *hostagentv1.ExecRequest) (*hostagentv1.ExecResponse, error) {
	res := &hostagentv1.ExecResponse{}
	return res, a.stream(ctx, "Exec", req.GetSandboxId(), func() error {
		p, err := a.spawn(req.GetSandboxId(), req.GetCmd(), req.GetArgs(), req.GetEnv())
		if err != nil {
			return err
		}
		if in := req.GetStdin(); len(in) > 0 {
			p.stdin <- in
		}
		p.closeIn()
		res.ExitCode, res.Status, err = p.run(ctx, func(out []byte) error {
			res.Stdout = append(res.Stdout, out...)
			return nil
		})
		return err
	})
}

// ExecStream runs or follows a command.
func (a *Agent) ExecStream(ctx context.Context, s *connect.BidiStream[hostagentv1.ExecStreamRequest, hostagentv1.ExecStreamResponse]) error {
	first, err := s.Receive()
	if err != nil {
		return err
	}
	id := first.GetStart().GetSandboxId() + first.GetAttach().GetSandboxId()
	return a.stream(ctx, "ExecStream", id, func() error {
		p, err := a.process(first)
		if err != nil {
			return err
		}
		started := &hostagentv1.ExecStarted{Pid: p.pid}
		if err := s.Send(&hostagentv1.ExecStreamResponse{Event: &hostagentv1.ExecStreamResponse_Started{Started: started}}); err != nil {
			return err
		}
		go p.input(ctx, s)
		code, text, err := p.run(ctx, func(out []byte) error {
			err := s.Send(&hostagentv1.ExecStreamResponse{Event: &hostagentv1.ExecStreamResponse_Stdout{Stdout: out}})
			if a.Sent != nil {
				a.Sent(len(out))
			}
			return err
		})
		if err != nil {
			return err
		}
		exit := &hostagentv1.ExecExit{ExitCode: code, Status: text}
		return s.Send(&hostagentv1.ExecStreamResponse{Event: &hostagentv1.ExecStreamResponse_Exit{Exit: exit}})
	})
}

// process starts the command that the first frame asks for, or finds it.
func (a *Agent) process(first *hostagentv1.ExecStreamRequest) (*process, error) {
	if start := first.GetStart(); start != nil {
		return a.spawn(start.GetSandboxId(), start.GetCmd(), start.GetArgs(), start.GetEnv())
	}
	var p *process
	return p, a.locked(func() error {
		b, err := a.running(first.GetAttach().GetSandboxId())
		if err != nil {
			return err
		}
		if p = b.processes[first.GetAttach().GetPid()]; p == nil {
			return wrenn.Errorf(wrenn.NotFound, "there is no process %d", first.GetAttach().GetPid())
		}
		return nil
	})
}

// input passes on what the caller sends until the stream ends.
func (p *process) input(ctx context.Context, s *connect.BidiStream[hostagentv1.ExecStreamRequest, hostagentv1.ExecStreamResponse]) {
	for {
		req, err := s.Receive()
		if err != nil {
			return
		}
		switch ev := req.GetEvent().(type) {
		case *hostagentv1.ExecStreamRequest_Stdin:
			select {
			case p.stdin <- ev.Stdin:
			case <-ctx.Done():
				return
			}
		case *hostagentv1.ExecStreamRequest_StdinClose:
			p.closeIn()
		case *hostagentv1.ExecStreamRequest_Signal:
			p.signal()
		}
	}
}

// SignalProcess ends a command.
func (a *Agent) SignalProcess(ctx context.Context, req *hostagentv1.SignalProcessRequest) (*hostagentv1.SignalProcessResponse, error) {
	return &hostagentv1.SignalProcessResponse{}, a.with(ctx, "SignalProcess", req.GetSandboxId(), func() error {
		b, err := a.running(req.GetSandboxId())
		if err != nil {
			return err
		}
		p := b.processes[req.GetPid()]
		if p == nil {
			return wrenn.Errorf(wrenn.NotFound, "there is no process %d", req.GetPid())
		}
		p.signal()
		return nil
	})
}

// WriteFile writes a small file.
func (a *Agent) WriteFile(ctx context.Context, req *hostagentv1.WriteFileRequest) (*hostagentv1.WriteFileResponse, error) {
	return &hostagentv1.WriteFileResponse{}, a.with(ctx, "WriteFile", req.GetSandboxId(), func() error {
		return a.store(req.GetSandboxId(), req.GetPath(), req.GetContent())
	})
}

// ReadFile reads a file.
func (a *Agent) ReadFile(ctx context.Context, req *hostagentv1.ReadFileRequest) (res *hostagentv1.ReadFileResponse, err error) {
	err = a.with(ctx, "ReadFile", req.GetSandboxId(), func() error {
		content, err := a.load(req.GetSandboxId(), req.GetPath())
		res = &hostagentv1.ReadFileResponse{Content: content}
		return err
	})
	return res, err
}

func (a *Agent) store(id, path string, content []byte) error {
	b, err := a.running(id)
	if err == nil {
		b.files[path] = bytes.Clone(content)
	}
	return err
}

func (a *Agent) load(id, path string) ([]byte, error) {
	b, err := a.running(id)
	if err != nil {
		return nil, err
	}
	content, ok := b.files[path]
	if !ok {
		return nil, wrenn.Errorf(wrenn.NotFound, "%s: no such file", path)
	}
	return content, nil
}

// WriteFileStream writes a file when all of it has come.
func (a *Agent) WriteFileStream(ctx context.Context, s *connect.ClientStream[hostagentv1.WriteFileStreamRequest]) (*hostagentv1.WriteFileStreamResponse, error) {
	if !s.Receive() || s.Msg().GetMeta() == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.Join(errors.New("meta is missing"), s.Err()))
	}
	meta := s.Msg().GetMeta()
	return &hostagentv1.WriteFileStreamResponse{}, a.stream(ctx, "WriteFileStream", meta.GetSandboxId(), func() error {
		if err := a.locked(func() error { _, err := a.running(meta.GetSandboxId()); return err }); err != nil {
			return err
		}
		var content bytes.Buffer
		for s.Receive() {
			content.Write(s.Msg().GetChunk())
		}
		if err := s.Err(); err != nil {
			return err
		}
		return a.locked(func() error { return a.store(meta.GetSandboxId(), meta.GetPath(), content.Bytes()) })
	})
}

// ReadFileStream reads a file. /dev/zero has no end, /dev/broken breaks in the middle.
func (a *Agent) ReadFileStream(ctx context.Context, req *hostagentv1.ReadFileStreamRequest, s *connect.ServerStream[hostagentv1.ReadFileStreamResponse]) error {
	return a.stream(ctx, "ReadFileStream", req.GetSandboxId(), func() error {
		source, err := a.open(req)
		if err != nil {
			return err
		}
		buf := make([]byte, chunkSize)
		for ctx.Err() == nil {
			n, err := source.Read(buf)
			if n > 0 {
				if err := s.Send(&hostagentv1.ReadFileStreamResponse{Chunk: buf[:n]}); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}

func (a *Agent) open(req *hostagentv1.ReadFileStreamRequest) (r io.Reader, err error) {
	switch req.GetPath() {
	case "/dev/zero":
		return zeros{}, nil
	case "/dev/broken":
		return io.MultiReader(strings.NewReader("half of it"), broken{}), nil
	}
	err = a.locked(func() error {
		content, err := a.load(req.GetSandboxId(), req.GetPath())
		r = bytes.NewReader(content)
		return err
	})
	return r, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) {
	return 0, wrenn.Errorf(wrenn.Unavailable, "the guest is gone")
}
