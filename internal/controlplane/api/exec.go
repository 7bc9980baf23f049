package api

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"time"
	"unicode/utf8"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
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
	answer := execAnswer{stdout: result.Stdout, stderr: result.Stderr, ExecResult: oapi.ExecResult{
		SandboxID: req.ID, Cmd: cmd.Cmd, Encoding: "utf-8",
		ExitCode: result.ExitCode, Status: result.Status, Reason: endReason(result.Reason), DurationMs: result.Duration.Milliseconds(), Truncated: result.Truncated,
	}}
	if !utf8.Valid(result.Stdout) || !utf8.Valid(result.Stderr) {
		answer.Encoding = encodingBase64
	}
	return answer, nil
}

// execAnswer is the answer with a result whose outputs, which it has besides, are
// encoded while they are sent: in JSON a byte may take six.
type execAnswer struct {
	oapi.ExecResult

	stdout, stderr []byte // both as text if both are UTF-8, else both in base64
}

// VisitExecResponse implements oapi.ExecResponseObject.
func (a execAnswer) VisitExecResponse(w http.ResponseWriter) error {
	rest, err := json.Marshal(a.ExecResult)
	if err != nil {
		return err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(rest, &fields); err != nil {
		return err
	}
	delete(fields, "stdout")
	delete(fields, "stderr")
	if rest, err = json.Marshal(fields); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(w, outputPiece)
	_, _ = out.Write(rest[:len(rest)-1]) // its errors are Flush's, too
	_, _ = out.WriteString(`,"stdout":"`)
	a.encode(out, a.stdout)
	_, _ = out.WriteString(`","stderr":"`)
	a.encode(out, a.stderr)
	_, _ = out.WriteString("\"}\n")
	return out.Flush()
}

// outputPiece is how much of an output is encoded at a time, in bytes.
const outputPiece = 32 << 10

// encode writes an output as the content of a JSON string.
func (a execAnswer) encode(out *bufio.Writer, output []byte) {
	if a.Encoding == encodingBase64 {
		encoder := base64.NewEncoder(base64.StdEncoding, out)
		_, _ = encoder.Write(output)
		_ = encoder.Close()
		return
	}
	for len(output) > 0 {
		n := min(len(output), outputPiece)
		for n < len(output) && !utf8.RuneStart(output[n]) {
			n--
		}
		text, _ := json.Marshal(string(output[:n])) // a string always can be
		_, _ = out.Write(text[1 : len(text)-1])
		output = output[n:]
	}
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

// endReason is nil for a reason that is not known.
func endReason(reason wrenn.EndReason) *oapi.EndReason {
	if reason == wrenn.EndUnknown {
		return nil
	}
	return new(oapi.EndReason(reason))
}
