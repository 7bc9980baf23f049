package api

import (
	"context"
	"encoding/base64"
	"time"
	"unicode/utf8"

	"wrenn"
	"wrenn/internal/controlplane/api/internal/oapi"
)

const (
	// execMargin is the time for the way to the sandbox and back, on top of the command's own.
	execMargin = time.Minute
	// encodingBase64 marks bytes that are not UTF-8.
	encodingBase64 = "base64"
)

func (h *handlers) Exec(ctx context.Context, req oapi.ExecRequestObject) (oapi.ExecResponseObject, error) {
	cmd, err := command(req.Body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cmd.Timeout+execMargin)
	defer cancel()
	result, err := h.s.service.Exec(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), cmd)
	if err != nil {
		return nil, err
	}
	stdout, stderr, encoding := encodeOutputs(result.Stdout, result.Stderr)
	return oapi.Exec200JSONResponse{Body: oapi.ExecResult{
		SandboxID: req.ID, Cmd: cmd.Cmd, Stdout: stdout, Stderr: stderr, Encoding: encoding,
		ExitCode: result.ExitCode, Status: result.Status, Reason: endReason(result.Reason), DurationMs: result.Duration.Milliseconds(), Truncated: result.Truncated,
	}}, nil
}

func command(body *oapi.Exec) (wrenn.ExecCommand, error) {
	cmd := wrenn.ExecCommand{
		Cmd: body.Cmd, Args: value(body.Args), Env: value(body.Env), Cwd: value(body.Cwd), User: value(body.User),
		Timeout: wrenn.DefaultExecTimeout,
	}
	if n := value(body.TimeoutSec); n > 0 {
		cmd.Timeout = time.Duration(n) * time.Second
	}
	if body.Stdin == nil {
		return cmd, nil
	}
	cmd.Stdin = []byte(*body.Stdin)
	if value(body.StdinEncoding) == encodingBase64 {
		input, err := base64.StdEncoding.DecodeString(*body.Stdin)
		if err != nil {
			return cmd, invalid("stdin: %v", err)
		}
		cmd.Stdin = input
	}
	return cmd, nil
}

// encodeOutputs returns both outputs as strings without loss: as they are if both
// are UTF-8, else both in base64.
func encodeOutputs(stdout, stderr []byte) (outText, errText string, encoding oapi.ExecResultEncoding) {
	if utf8.Valid(stdout) && utf8.Valid(stderr) {
		return string(stdout), string(stderr), "utf-8"
	}
	return base64.StdEncoding.EncodeToString(stdout), base64.StdEncoding.EncodeToString(stderr), encodingBase64
}

// endReason is nil for a reason that is not known.
func endReason(reason wrenn.EndReason) *oapi.EndReason {
	if reason == wrenn.EndUnknown {
		return nil
	}
	return new(oapi.EndReason(reason))
}
