package hostwire

import (
	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// ExecRequest asks for a command that is run to its end, on behalf of owner.
func ExecRequest(id wrenn.SandboxID, owner wrenn.TeamID, cmd wrenn.ExecCommand) *pb.ExecRequest {
	return &pb.ExecRequest{
		SandboxId: string(id), Owner: string(owner), Cmd: cmd.Cmd, Args: cmd.Args, Env: cmd.Env, Cwd: cmd.Cwd, User: cmd.User,
		TimeoutSec: seconds(cmd.Timeout), Stdin: cmd.Stdin,
	}
}

// ParseExecRequest reads which command is to be run to its end.
func ParseExecRequest(msg *pb.ExecRequest) (wrenn.SandboxID, wrenn.ExecCommand, error) {
	cmd := parseCommand(msg)
	cmd.Stdin = msg.GetStdin()
	return checkCommand(msg.GetSandboxId(), cmd)
}

// commanding is every message with a command.
type commanding interface {
	GetCmd() string
	GetArgs() []string
	GetEnv() map[string]string
	GetCwd() string
	GetUser() string
	GetTimeoutSec() uint32
}

func parseCommand(msg commanding) wrenn.ExecCommand {
	return wrenn.ExecCommand{
		Cmd: msg.GetCmd(), Args: msg.GetArgs(), Env: msg.GetEnv(), Cwd: msg.GetCwd(), User: msg.GetUser(),
		Timeout: parseSeconds(msg.GetTimeoutSec()),
	}
}

func checkCommand(sandbox string, cmd wrenn.ExecCommand) (wrenn.SandboxID, wrenn.ExecCommand, error) {
	if cmd.Cmd == "" {
		return "", cmd, wrenn.Errorf(wrenn.Invalid, "cmd is missing")
	}
	id, err := wrenn.ParseSandboxID(sandbox)
	return id, cmd, err
}

// ExecResult is the end of a command. Its Duration is not sent: the caller
// measures that.
func ExecResult(res wrenn.ExecResult) *pb.ExecResponse {
	return &pb.ExecResponse{
		Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: int32(res.ExitCode), Status: res.Status, Truncated: res.Truncated,
		Reason: endReasons[res.Reason],
	}
}

// ParseExecResult reads the end of a command.
func ParseExecResult(msg *pb.ExecResponse) wrenn.ExecResult {
	return wrenn.ExecResult{
		Stdout: msg.GetStdout(), Stderr: msg.GetStderr(), ExitCode: int(msg.GetExitCode()), Status: msg.GetStatus(), Truncated: msg.GetTruncated(),
		Reason: parseEndReason(msg.GetReason()),
	}
}

// endReasons are the messages for why a command ended.
var endReasons = map[wrenn.EndReason]pb.ExecEndReason{
	wrenn.EndUnknown:     pb.ExecEndReason_EXEC_END_REASON_UNSPECIFIED,
	wrenn.EndExited:      pb.ExecEndReason_EXEC_END_REASON_EXITED,
	wrenn.EndSignaled:    pb.ExecEndReason_EXEC_END_REASON_SIGNALED,
	wrenn.EndTimeout:     pb.ExecEndReason_EXEC_END_REASON_TIMEOUT,
	wrenn.EndOutOfMemory: pb.ExecEndReason_EXEC_END_REASON_OUT_OF_MEMORY,
}

// parseEndReason reads why a command ended; a newer agent's reason is unknown.
func parseEndReason(msg pb.ExecEndReason) wrenn.EndReason {
	for reason, other := range endReasons {
		if other == msg {
			return reason
		}
	}
	return wrenn.EndUnknown
}

// ExecStart is the first message of a stream that starts a command.
func ExecStart(id wrenn.SandboxID, start wrenn.ExecStart) *pb.ExecStreamRequest {
	msg := &pb.ExecStart{
		SandboxId: string(id), Cmd: start.Cmd, Args: start.Args, Env: start.Env, Cwd: start.Cwd, User: start.User,
		TimeoutSec: seconds(start.Timeout), Stdin: start.WantStdin,
		Session: start.Session.ID, HoldSec: seconds(start.Session.Hold),
	}
	if start.PTY != nil {
		msg.Pty = terminal(*start.PTY)
	}
	return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Start{Start: msg}}
}

// ParseExecStart reads which command is to be started.
func ParseExecStart(msg *pb.ExecStart) (wrenn.SandboxID, wrenn.ExecStart, error) {
	start := wrenn.ExecStart{WantStdin: msg.GetStdin(), Session: parseSession(msg)}
	if msg.GetPty() != nil {
		start.PTY = new(parseTerminal(msg.GetPty()))
	}
	id, cmd, err := checkCommand(msg.GetSandboxId(), parseCommand(msg))
	start.ExecCommand = cmd
	return id, start, err
}

// ExecAttach is the first message of a stream that follows a command.
func ExecAttach(id wrenn.SandboxID, to wrenn.ExecAttach) *pb.ExecStreamRequest {
	return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Attach{Attach: &pb.ExecAttach{
		SandboxId: string(id), Pid: number(to.PID), Session: to.Session.ID, HoldSec: seconds(to.Session.Hold), Offset: to.Offset,
	}}}
}

// ParseExecAttach reads which command is to be followed.
func ParseExecAttach(msg *pb.ExecAttach) (wrenn.SandboxID, wrenn.ExecAttach, error) {
	id, err := wrenn.ParseSandboxID(msg.GetSandboxId())
	return id, wrenn.ExecAttach{PID: int(msg.GetPid()), Session: parseSession(msg), Offset: msg.Offset}, err
}

// resumable is every message that may name a session.
type resumable interface {
	GetSession() string
	GetHoldSec() uint32
}

func parseSession(msg resumable) wrenn.ExecSession {
	return wrenn.ExecSession{ID: msg.GetSession(), Hold: parseSeconds(msg.GetHoldSec())}
}

func terminal(size wrenn.PTYSize) *pb.TerminalSize {
	const most = 1<<16 - 1 // struct winsize has 16 bits
	return &pb.TerminalSize{Cols: uint32(max(1, min(size.Cols, most))), Rows: uint32(max(1, min(size.Rows, most)))}
}

func parseTerminal(msg *pb.TerminalSize) wrenn.PTYSize {
	return wrenn.PTYSize{Cols: int(msg.GetCols()), Rows: int(msg.GetRows())}
}

// ExecInput is a message of the caller after the first. Invalid for a signal
// that cannot be sent.
func ExecInput(in wrenn.ExecInput) (*pb.ExecStreamRequest, error) {
	switch {
	case in.Stdin != nil:
		return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Stdin{Stdin: in.Stdin}}, nil
	case in.CloseStdin:
		return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_StdinClose{StdinClose: true}}, nil
	case in.Resize != nil:
		return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Resize{Resize: terminal(*in.Resize)}}, nil
	case in.Ack != nil:
		return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Ack{Ack: *in.Ack}}, nil
	case in.Leave:
		return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Leave{Leave: true}}, nil
	}
	signal, known := signals[in.Signal]
	if !known {
		return nil, wrenn.Errorf(wrenn.Invalid, "cannot send signal %.20q: use SIGTERM or SIGKILL", string(in.Signal))
	}
	return &pb.ExecStreamRequest{Event: &pb.ExecStreamRequest_Signal{Signal: signal}}, nil
}

// ParseExecInput reads a message of the caller after the first.
func ParseExecInput(msg *pb.ExecStreamRequest) (wrenn.ExecInput, error) {
	switch ev := msg.GetEvent().(type) {
	case *pb.ExecStreamRequest_Stdin:
		return wrenn.ExecInput{Stdin: ev.Stdin}, nil
	case *pb.ExecStreamRequest_StdinClose:
		return wrenn.ExecInput{CloseStdin: true}, nil
	case *pb.ExecStreamRequest_Resize:
		return wrenn.ExecInput{Resize: new(parseTerminal(ev.Resize))}, nil
	case *pb.ExecStreamRequest_Signal:
		signal, err := ParseSignal(ev.Signal)
		return wrenn.ExecInput{Signal: signal}, err
	case *pb.ExecStreamRequest_Ack:
		return wrenn.ExecInput{Ack: &ev.Ack}, nil
	case *pb.ExecStreamRequest_Leave:
		return wrenn.ExecInput{Leave: true}, nil
	}
	return wrenn.ExecInput{}, wrenn.Errorf(wrenn.Invalid, "after start or attach, messages are stdin, stdin_close, resize, signal, ack or leave")
}

var signals = map[wrenn.Signal]pb.Signal{
	wrenn.SIGTERM: pb.Signal_SIGNAL_SIGTERM,
	wrenn.SIGKILL: pb.Signal_SIGNAL_SIGKILL,
}

// ParseSignal reads a signal.
func ParseSignal(msg pb.Signal) (wrenn.Signal, error) {
	for signal, other := range signals {
		if other == msg {
			return signal, nil
		}
	}
	return "", wrenn.Errorf(wrenn.Invalid, "cannot send signal %d: use SIGTERM (15) or SIGKILL (9)", msg)
}

// ExecOutput is a message of the host.
func ExecOutput(out wrenn.ExecOutput) *pb.ExecStreamResponse {
	switch {
	case out.Stdout != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Stdout{Stdout: out.Stdout}, Offset: out.Offset}
	case out.Stderr != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Stderr{Stderr: out.Stderr}, Offset: out.Offset}
	case out.PTY != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Pty{Pty: out.PTY}, Offset: out.Offset}
	case out.Started != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Started{Started: &pb.ExecStarted{
			Pid: number(out.Started.PID), Offset: out.Started.Offset, Lost: out.Started.Lost, Input: out.Started.Taken,
		}}}
	case out.Taken != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Input{Input: *out.Taken}}
	case out.Exit != nil:
		return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Exit{Exit: &pb.ExecExit{
			ExitCode: int32(out.Exit.Code), Status: out.Exit.Status, Reason: endReasons[out.Exit.Reason],
		}}}
	}
	return &pb.ExecStreamResponse{Event: &pb.ExecStreamResponse_Keepalive{Keepalive: true}}
}

// ParseExecOutput reads a message of the host. ok is false for one without
// content, and for one that a newer host sends: there is nothing to pass on.
func ParseExecOutput(msg *pb.ExecStreamResponse) (_ wrenn.ExecOutput, ok bool) {
	switch ev := msg.GetEvent().(type) {
	case *pb.ExecStreamResponse_Started:
		return wrenn.ExecOutput{Started: &wrenn.ExecStarted{
			PID: int(ev.Started.GetPid()), Offset: ev.Started.GetOffset(), Lost: ev.Started.GetLost(), Taken: ev.Started.GetInput(),
		}}, true
	case *pb.ExecStreamResponse_Stdout:
		return wrenn.ExecOutput{Stdout: ev.Stdout, Offset: msg.GetOffset()}, len(ev.Stdout) > 0
	case *pb.ExecStreamResponse_Stderr:
		return wrenn.ExecOutput{Stderr: ev.Stderr, Offset: msg.GetOffset()}, len(ev.Stderr) > 0
	case *pb.ExecStreamResponse_Pty:
		return wrenn.ExecOutput{PTY: ev.Pty, Offset: msg.GetOffset()}, len(ev.Pty) > 0
	case *pb.ExecStreamResponse_Input:
		return wrenn.ExecOutput{Taken: &ev.Input}, true
	case *pb.ExecStreamResponse_Exit:
		return wrenn.ExecOutput{Exit: &wrenn.ExecExit{
			Code: int(ev.Exit.GetExitCode()), Status: ev.Exit.GetStatus(), Reason: parseEndReason(ev.Exit.GetReason()),
		}}, true
	case *pb.ExecStreamResponse_Keepalive:
		return wrenn.ExecOutput{Keepalive: true}, true
	}
	return wrenn.ExecOutput{}, false
}
