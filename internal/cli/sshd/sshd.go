// Package sshd serves one SSH connection with a sandbox behind it, on this machine:
// programs that know only SSH, such as VS Code and rsync, reach a sandbox through it
// without an SSH server or keys in the sandbox. The connection is a pipe to a client
// of this machine, which needs no password; the API key protects the way to the
// sandbox.
package sshd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"wrenn.dev/client"
	"wrenn.dev/internal/programs"
)

// DefaultUser is the SSH user that stands for the template's default user.
const DefaultUser = "default"

// maxChannels bounds what a client may have open at a time.
const maxChannels = 256

// Server serves the sandbox ID.
type Server struct {
	API *client.Client
	ID  string
	// Failed is called for connections to ports that fail, at any time.
	Failed func(error)
}

// Serve serves one client on conn until it leaves or ctx ends, and closes conn.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{NoClientAuth: true, ServerVersion: "SSH-2.0-wrenn"}
	config.AddHostKey(signer)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return fmt.Errorf("begin the SSH connection: %w", err)
	}
	go ssh.DiscardRequests(requests) // such as keepalive@openssh.com, to which any reply will do
	user := server.User()
	if user == DefaultUser {
		user = ""
	}
	s.accept(ctx, channels, user)
	return nil
}

// accept serves channels until the client leaves, and returns when all have ended.
func (s *Server) accept(ctx context.Context, channels <-chan ssh.NewChannel, user string) {
	ctx, cancel := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel() // the client is gone
	places := make(chan struct{}, maxChannels)
	for asked := range channels {
		select {
		case places <- struct{}{}:
		default:
			_ = asked.Reject(ssh.ResourceShortage, "too many channels") // a broken connection ends the loop
			continue
		}
		open.Go(func() {
			defer func() { <-places }()
			switch asked.ChannelType() {
			case "session":
				s.session(ctx, asked, user)
			case "direct-tcpip":
				s.forward(ctx, asked)
			default:
				_ = asked.Reject(ssh.UnknownChannelType, "sessions and connections to ports are served, nothing else")
			}
		})
	}
}

// forward connects a channel to a port of the sandbox.
func (s *Server) forward(ctx context.Context, asked ssh.NewChannel) {
	var to struct { // RFC 4254, 7.2
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(asked.ExtraData(), &to); err != nil || to.Port == 0 || to.Port > 65535 {
		_ = asked.Reject(ssh.ConnectionFailed, "no such port")
		return
	}
	if ip := net.ParseIP(to.Host); to.Host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		_ = asked.Reject(ssh.Prohibited, "only ports of the sandbox itself: localhost")
		return
	}
	remote, err := s.API.DialPort(ctx, s.ID, int(to.Port))
	if err != nil {
		s.Failed(fmt.Errorf("port %d: %w", to.Port, err))
		_ = asked.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := asked.Accept()
	if err != nil {
		_ = remote.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	defer context.AfterFunc(ctx, func() { _ = channel.Close() })()
	join(channel, remote)
}

// half is a connection whose directions end one by one.
type half interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// join passes bytes in both directions until both have ended, and closes the two.
func join(channel half, remote net.Conn) {
	defer channel.Close()
	defer remote.Close()
	var passing sync.WaitGroup
	passing.Go(func() {
		_, err := io.Copy(remote, channel)
		if h, ok := remote.(interface{ CloseWrite() error }); ok && err == nil {
			_ = h.CloseWrite() // the other direction ends then, too
			return
		}
		_ = remote.Close()
	})
	passing.Go(func() {
		if _, err := io.Copy(channel, remote); err != nil {
			_ = channel.Close() // a cut connection must not look like one that ended
			return
		}
		_ = channel.CloseWrite()
	})
	passing.Wait()
}

// sftpServer starts the SFTP server of the sandbox, where distributions have it.
const sftpServer = `for p in /usr/lib/openssh /usr/lib/ssh /usr/libexec /usr/libexec/openssh; do [ -x $p/sftp-server ] && exec $p/sftp-server; done
	echo "the sandbox has no SFTP server: apt-get install openssh-sftp-server, or copy by rsync or wrenn sandbox cp" >&2; exit 127`

// shellCommand runs a line in bash, else in sh; without a line a login shell.
func shellCommand(line string) client.Command {
	if line == "" {
		return client.Command{Cmd: "/bin/sh", Args: []string{"-c", programs.LoginShell}}
	}
	const script = `if command -v bash >/dev/null; then exec bash -c "$1"; else exec sh -c "$1"; fi`
	return client.Command{Cmd: "/bin/sh", Args: []string{"-c", script, "sh", line}}
}

// pipe is a connection over two streams, such as standard input and output.
type pipe struct {
	io.Reader
	io.Writer
	net.Conn // nil: deadlines are not used
}

// NewPipe returns a connection over two streams for Serve. Closing it closes those
// that can be closed.
func NewPipe(in io.Reader, out io.Writer) net.Conn { return &pipe{Reader: in, Writer: out} }

func (p *pipe) Read(b []byte) (int, error)  { return p.Reader.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.Writer.Write(b) }

func (p *pipe) Close() error {
	for _, end := range []any{p.Reader, p.Writer} {
		if c, ok := end.(io.Closer); ok {
			_ = c.Close() // the connection is over, whatever it says
		}
	}
	return nil
}

func (*pipe) RemoteAddr() net.Addr { return pipeAddress{} }
func (*pipe) LocalAddr() net.Addr  { return pipeAddress{} }

type pipeAddress struct{}

func (pipeAddress) Network() string { return "pipe" }
func (pipeAddress) String() string  { return "pipe" }

// accepted reports whether a variable may be passed on: as with OpenSSH's AcceptEnv on
// Debian, only those of the language.
func accepted(name string) bool {
	return name == "LANG" || strings.HasPrefix(name, "LC_") || name == "COLORTERM"
}
