package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"
)

const encodingBase64 = "base64"

// Command is a program to run. Only Cmd is required. No shell is involved: for
// pipes and variables run /bin/sh with -c.
type Command struct {
	Cmd  string // a path, or a name to look up in PATH
	Args []string
	Env  map[string]string
	Cwd  string // "" means the user's home
	User string // "" means the template's default user
	// Timeout is the time after which the command is killed, in whole seconds,
	// rounded up. 0 means 30 seconds for Exec and no timeout for Start.
	Timeout time.Duration
	Stdin   []byte // for Exec only, at most 1 MiB; for Start, write to the stream
}

// Result is what a command printed and how it ended.
type Result struct {
	Stdout, Stderr []byte
	ExitCode       int    // -1 when a signal ended the command
	Status         string // ExitCode in words
	Reason         EndReason
	Truncated      bool // an output exceeded the server's limit and the rest is lost; use Start for long outputs
	Duration       time.Duration
}

type commandBody struct {
	Cmd        string            `json:"cmd"`
	Args       []string          `json:"args,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	Cwd        string            `json:"cwd,omitempty"`
	User       string            `json:"user,omitempty"`
	TimeoutSec int64             `json:"timeout_sec,omitempty"`
}

// body returns the command as it is sent. It fails when the command has bytes
// that JSON cannot hold: the encoder would silently replace them.
func (c Command) body() (commandBody, error) {
	for _, word := range append([]string{c.Cmd, c.Cwd, c.User}, c.Args...) {
		if !utf8.ValidString(word) {
			return commandBody{}, &Error{Code: InvalidRequest, Message: fmt.Sprintf("the command contains %.80q, which is not UTF-8 text: pass other bytes as standard input or in a file", word)}
		}
	}
	for name, value := range c.Env {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return commandBody{}, &Error{Code: InvalidRequest, Message: fmt.Sprintf("the environment variable %.80q is not UTF-8 text", name)}
		}
	}
	return commandBody{Cmd: c.Cmd, Args: c.Args, Env: c.Env, Cwd: c.Cwd, User: c.User, TimeoutSec: seconds(c.Timeout)}, nil
}

// Exec runs a command and waits until it ends; an exit code other than 0 is not
// an error. A command that reaches its timeout is killed, and the error's code
// is Timeout. Canceling ctx kills the command.
func (c *Client) Exec(ctx context.Context, id string, cmd Command) (*Result, error) {
	command, err := cmd.body()
	if err != nil {
		return nil, err
	}
	body := struct {
		commandBody

		Stdin    string `json:"stdin,omitempty"`
		Encoding string `json:"stdin_encoding,omitempty"`
	}{commandBody: command}
	if len(cmd.Stdin) > 0 {
		body.Stdin, body.Encoding = base64.StdEncoding.EncodeToString(cmd.Stdin), encodingBase64
	}
	var answer struct {
		Stdout     string `json:"stdout"`
		Stderr     string `json:"stderr"`
		ExitCode   int    `json:"exit_code"`
		Reason     string `json:"reason"`
		Status     string `json:"status"`
		DurationMS int64  `json:"duration_ms"`
		Encoding   string `json:"encoding"`
		Truncated  bool   `json:"truncated"`
	}
	if err := c.call(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/exec"), body: body}, &answer); err != nil {
		return nil, err
	}
	out := &Result{
		ExitCode: answer.ExitCode, Status: answer.Status, Reason: EndReason(answer.Reason), Truncated: answer.Truncated,
		Duration: time.Duration(answer.DurationMS) * time.Millisecond,
	}
	if out.Stdout, err = decode(answer.Stdout, answer.Encoding); err != nil {
		return nil, err
	}
	out.Stderr, err = decode(answer.Stderr, answer.Encoding)
	return out, err
}

// decode returns the bytes that data encodes.
func decode(data, encoding string) ([]byte, error) {
	if encoding != encodingBase64 {
		return []byte(data), nil
	}
	out, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, &Error{Code: Internal, Message: "the server sent an output that cannot be decoded", Err: fmt.Errorf("base64: %w", err)}
	}
	return out, nil
}
