package sshd

import (
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"

	"wrenn.dev/client"
)

const (
	// maxEnv bounds the variables that a client sends.
	maxEnv = 64
	// codeNotStarted is the exit status of shells for a command that was not found.
	codeNotStarted = 127
	// inputChunk is how many bytes of input are read at once.
	inputChunk = 64 << 10
)

// session is a channel in which one command runs.
type session struct {
	server  *Server
	channel ssh.Channel
	user    string
	env     map[string]string
	pty     *client.Size

	mu     sync.Mutex     // guards what follows
	begun  bool           // a command was asked for
	stream *client.Stream // nil until it runs
}

func (s *Server) session(ctx context.Context, asked ssh.NewChannel, user string) {
	channel, requests, err := asked.Accept()
	if err != nil {
		return
	}
	defer func() { _ = channel.Close() }() // the client may have closed it
	ctx, cancel := context.WithCancel(ctx)
	one := &session{server: s, channel: channel, user: user, env: map[string]string{}}
	var running sync.WaitGroup
	for r := range requests {
		cmd, start := one.request(r)
		if start {
			running.Go(func() {
				one.run(ctx, cmd)
				_ = channel.Close() // ends the requests
			})
		}
	}
	cancel() // the client is gone, or the command has ended
	running.Wait()
}

// request serves a request, see RFC 4254, 6. It returns the command to start.
func (s *session) request(r *ssh.Request) (cmd client.Command, start bool) {
	ok := false
	switch r.Type {
	case "env":
		ok = s.setEnv(r.Payload)
	case "pty-req", "window-change":
		ok = s.resize(r)
	case "signal":
		ok = s.signal(r.Payload)
	case "shell", "exec", "subsystem":
		cmd, ok = s.command(r)
		start = ok
	}
	if r.WantReply {
		_ = r.Reply(ok, nil) // a broken connection ends the requests
	}
	return cmd, start
}

func (s *session) setEnv(payload []byte) bool {
	var v struct{ Name, Value string }
	if ssh.Unmarshal(payload, &v) != nil || !accepted(v.Name) || len(s.env) >= maxEnv {
		return false
	}
	s.env[v.Name] = v.Value
	return true
}

func (s *session) resize(r *ssh.Request) bool {
	var pty struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	var size struct{ Cols, Rows, Width, Height uint32 }
	if r.Type == "pty-req" {
		if ssh.Unmarshal(r.Payload, &pty) != nil {
			return false
		}
		s.env["TERM"], size.Cols, size.Rows = pty.Term, pty.Cols, pty.Rows
	} else if ssh.Unmarshal(r.Payload, &size) != nil {
		return false
	}
	const most = 1 << 15
	now := client.Size{Cols: int(min(max(size.Cols, 1), most)), Rows: int(min(max(size.Rows, 1), most))}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stream != nil && s.pty != nil:
		_ = s.stream.Resize(now) // Copy reports a broken stream
	case r.Type == "pty-req":
		s.pty = &now
	}
	return true
}

// signal sends one of the two signals that sandboxes have; others that end a command
// by default become the softer one.
func (s *session) signal(payload []byte) bool {
	var name struct{ Name string }
	if ssh.Unmarshal(payload, &name) != nil {
		return false
	}
	send, known := map[string]client.Signal{
		"KILL": client.SIGKILL, "TERM": client.SIGTERM, "HUP": client.SIGTERM, "INT": client.SIGTERM, "QUIT": client.SIGTERM,
	}[name.Name]
	s.mu.Lock()
	defer s.mu.Unlock()
	return known && s.stream != nil && s.stream.Signal(send) == nil
}

func (s *session) command(r *ssh.Request) (client.Command, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun {
		return client.Command{}, false // a session has one command
	}
	s.begun = true
	if r.Type == "shell" {
		return shellCommand(""), true
	}
	var line struct{ Text string }
	if ssh.Unmarshal(r.Payload, &line) != nil {
		return client.Command{}, false
	}
	switch {
	case r.Type == "exec":
		return shellCommand(line.Text), true
	case line.Text == "sftp":
		return client.Command{Cmd: "/bin/sh", Args: []string{"-c", sftpServer}}, true
	}
	return client.Command{}, false
}

// run runs the command and tells the client how it ended.
func (s *session) run(ctx context.Context, cmd client.Command) {
	cmd.Env, cmd.User = s.env, s.user
	stream, err := s.server.API.Start(ctx, s.server.ID, cmd, client.StartOptions{Stdin: s.pty == nil, PTY: s.pty})
	if err != nil {
		_, _ = io.WriteString(s.channel.Stderr(), err.Error()+"\r\n") // the client is gone if it fails
		s.exit(client.Exit{Code: codeNotStarted})
		return
	}
	defer func() { _ = stream.Close() }() // the command has ended, or its reader has left
	s.mu.Lock()
	s.stream = stream
	s.mu.Unlock()
	// As with other servers, a command with a terminal ends with its client, and one without continues.
	defer context.AfterFunc(ctx, func() {
		if s.pty != nil {
			_ = stream.Signal(client.SIGTERM) // it has ended if it fails
		}
		_ = stream.Close()
	})()
	go s.input(stream)
	exit, err := stream.Copy(s.channel, s.channel.Stderr())
	if err != nil {
		_, _ = io.WriteString(s.channel.Stderr(), err.Error()+"\r\n")
		exit = client.Exit{Code: 1}
	}
	s.exit(exit)
}

// input passes the client's input on, until it or the command ends.
func (s *session) input(stream *client.Stream) {
	buffer := make([]byte, inputChunk)
	for {
		n, err := s.channel.Read(buffer)
		if n > 0 {
			if _, err := stream.Write(buffer[:n]); err != nil {
				return // Copy reports a broken stream
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) && s.pty == nil {
				_ = stream.CloseStdin() // as for Write above
			}
			return
		}
	}
}

// codeSignal is what shells add to the number of a signal; SSH's own message has only
// names, of which clients show none.
const codeSignal = 128

func (s *session) exit(exit client.Exit) {
	status := uint32(codeSignal)
	if exit.Code >= 0 {
		status = uint32(exit.Code)
	}
	_, _ = s.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status})) // the client is gone if it fails
}
