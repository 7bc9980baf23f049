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

// Command is a program to run. Only Cmd is needed. No shell is involved: for
// pipes and variables run /bin/sh with -c.
type Command struct {
	Cmd  string // a path, or a name that is searched in PATH
	Args []string
	Env  map[string]string
	Cwd  string // "" is the user's home
	User string // "" is the template's default user
	// Timeout is when it is killed, in whole seconds, rounded up. 0 is 30
	// seconds for Exec and never for Start.
	Timeout time.Duration
	Stdin   []byte // of Exec, at most 1 MiB; Start streams it
}

// Result is what a command printed and how it ended.
type Result struct {
	Stdout, Stderr []byte
	ExitCode       int    // -1 when a signal ended it
	Status         string // the same in words
	Truncated      bool   // an output went on after the server's limit, and the rest is lost; use Start
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

// body returns the command as JSON has it. The error says what JSON cannot have:
// the encoder would put other characters in its place.
func (c Command) body() (commandBody, error) {
	for _, word := range append([]string{c.Cmd, c.Cwd, c.User}, c.Args...) {
		if !utf8.ValidString(word) {
			return commandBody{}, &Error{Code: InvalidRequest, Message: fmt.Sprintf("the command has %.80q, which is not UTF-8 text: other bytes can be passed as standard input or in a file", word)}
		}
	}
	for name, value := range c.Env {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return commandBody{}, &Error{Code: InvalidRequest, Message: fmt.Sprintf("the environment variable %.80q is not UTF-8 text", name)}
		}
	}
	return commandBody{Cmd: c.Cmd, Args: c.Args, Env: c.Env, Cwd: c.Cwd, User: c.User, TimeoutSec: seconds(c.Timeout)}, nil
}

// Exec runs a command to its end; an exit code other than 0 is no error. One
// that runs into its timeout is killed, and the error's code is Timeout. The
// end of ctx ends the command.
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
		Status     string `json:"status"`
		DurationMS int64  `json:"duration_ms"`
		Encoding   string `json:"encoding"`
		Truncated  bool   `json:"truncated"`
	}
	if err := c.call(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/exec"), body: body}, &answer); err != nil {
		return nil, err
	}
	out := &Result{
		ExitCode: answer.ExitCode, Status: answer.Status, Truncated: answer.Truncated,
		Duration: time.Duration(answer.DurationMS) * time.Millisecond,
	}
	if out.Stdout, err = decode(answer.Stdout, answer.Encoding); err != nil {
		return nil, err
	}
	out.Stderr, err = decode(answer.Stderr, answer.Encoding)
	return out, err
}

// decode returns the bytes that data stands for.
func decode(data, encoding string) ([]byte, error) {
	if encoding != encodingBase64 {
		return []byte(data), nil
	}
	out, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, &Error{Code: Internal, Message: "the server sent an output that is not what it says", Err: fmt.Errorf("base64: %w", err)}
	}
	return out, nil
}
