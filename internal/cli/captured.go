package cli

import (
	"bytes"
	"encoding/base64"
	"io"
	"unicode/utf8"

	"wrenn.dev/client"
)

// maxCaptured bounds each output of a command that -o json prints.
const maxCaptured = 16 << 20

// captured keeps the beginning of an output.
type captured struct {
	bytes.Buffer

	cut bool // more was written
}

func (c *captured) Write(p []byte) (int, error) {
	room := min(len(p), maxCaptured-c.Len())
	c.cut = c.cut || room < len(p)
	_, _ = c.Buffer.Write(p[:room]) // it cannot fail
	return len(p), nil
}

// execResult is what exec -o json prints, with the names of the API's answer.
type execResult struct {
	Stdout    string           `json:"stdout"`
	Stderr    string           `json:"stderr"`
	Encoding  string           `json:"encoding,omitempty"` // base64 if one of them is not text
	Truncated bool             `json:"truncated,omitempty"`
	ExitCode  int              `json:"exit_code"` // -1 when a signal ended the command
	Status    string           `json:"status"`
	Reason    client.EndReason `json:"reason,omitempty"`
}

// outputs returns where the command's outputs go.
func (p *program) outputs() (stdout, stderr io.Writer) {
	if p.s.json() {
		return &captured{}, &captured{}
	}
	return p.s.Out, p.s.Err
}

// report prints the result of a command whose outputs were captured.
func (p *program) report(exit client.Exit, stdout, stderr io.Writer) error {
	out, ok := stdout.(*captured)
	if !ok {
		return nil
	}
	errOut := stderr.(*captured)
	result := execResult{
		Stdout: out.String(), Stderr: errOut.String(), Truncated: out.cut || errOut.cut,
		ExitCode: exit.Code, Status: exit.Status, Reason: exit.Reason,
	}
	if !utf8.Valid(out.Bytes()) || !utf8.Valid(errOut.Bytes()) {
		result.Encoding = "base64"
		result.Stdout, result.Stderr = base64.StdEncoding.EncodeToString(out.Bytes()), base64.StdEncoding.EncodeToString(errOut.Bytes())
	}
	s := p.s
	return s.print(result, nil) // only -o json captures
}
