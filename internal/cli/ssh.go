package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"wrenn.dev/internal/cli/sshd"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
)

// sshSuffix ends the host names of sandboxes in the configuration of ssh(1).
const sshSuffix = ".wrenn"

// sshOptions are those for every sandbox. The host has no key to know it by: the
// connection is a pipe to this program, which has checked the server by its address.
var sshOptions = [][2]string{
	{"User", sshd.DefaultUser}, {"StrictHostKeyChecking", "no"}, {"UserKnownHostsFile", "/dev/null"}, {"LogLevel", "ERROR"},
	{"ServerAliveInterval", "30"},
}

type sshConfigCommand struct{}

// Help is shown below the usage.
func (*sshConfigCommand) Help() string {
	return `Once, then ssh, scp, rsync and VS Code reach every sandbox by its id or name:

  wrenn ssh-config >> ~/.ssh/config
  ssh web.wrenn; rsync -a src/ web.wrenn:/work/; code --remote ssh-remote+web.wrenn /work

The sandbox needs no SSH server and no keys. rsync must be installed in it, and
openssh-sftp-server for scp and sftp.`
}

// Run prints a section for ssh's configuration, which calls this program by its path.
func (*sshConfigCommand) Run(s *session) error {
	command, err := s.proxyCommand("%n")
	if err != nil {
		return err
	}
	return s.print(map[string]string{"host": "*" + sshSuffix, "proxy_command": command}, func(w io.Writer) {
		fmt.Fprintf(w, "Host *%s\n  ProxyCommand %s\n", sshSuffix, command)
		for _, o := range sshOptions {
			fmt.Fprintf(w, "  %s %s\n", o[0], o[1])
		}
	})
}

// proxyCommand returns the command with which ssh reaches a host, with the server
// and the configuration that this command line names.
func (s *session) proxyCommand(host string) (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	words := []string{program}
	for _, o := range [][2]string{{"--url", s.line.URL}, {"--config", s.line.Config}, {"--context", s.line.ContextName}} {
		if o[1] != "" {
			words = append(words, o[0], o[1])
		}
	}
	words = append(words, "sandbox", "ssh-proxy", host)
	for i, word := range words {
		if strings.ContainsAny(word, " \t\"'\\$`") {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" // ssh runs it by a shell
		}
	}
	return strings.Join(words, " "), nil
}

type sshCommand struct {
	User string   `short:"u" placeholder:"USER" help:"The user in the sandbox; default: the template's default user."`
	ID   string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Args []string `arg:"" optional:"" passthrough:"all" help:"More arguments for ssh, such as -L 8000:localhost:8000, or a command."`
}

// Run runs this machine's ssh, and ends with its exit code.
func (c *sshCommand) Run(ctx context.Context, s *session) error {
	proxy, err := s.proxyCommand(c.ID)
	if err != nil {
		return err
	}
	args := []string{"-o", "ProxyCommand=" + proxy}
	for _, o := range sshOptions[1:] {
		args = append(args, "-o", o[0]+"="+o[1])
	}
	user := c.User
	if user == "" {
		user = sshd.DefaultUser
	}
	args = append(args, "-l", user)
	flags, command := splitFlags(afterDashes(c.Args))
	cmd := exec.CommandContext(ctx, "ssh", append(append(append(args, flags...), c.ID+sshSuffix), command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
	err = cmd.Run()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok && ended.ExitCode() > 0 {
		return exitCode(ended.ExitCode())
	}
	return err
}

// valued are the flags of ssh(1) that have a value.
const valued = "BbcDEeFIiJLlmOopQRSWw"

// splitFlags separates flags of ssh from the command that follows them: the host goes between.
func splitFlags(args []string) (flags, command []string) {
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") || args[i] == "-" {
			return args[:i], args[i:]
		}
		if last := args[i][len(args[i])-1]; len(args[i]) == 2 && strings.IndexByte(valued, last) >= 0 {
			i++
		}
	}
	return args, nil
}

type sshProxyCommand struct {
	Host string `arg:"" help:"The sandbox, as ssh calls it: its id or name, with .wrenn behind it or not."`
}

// Run speaks SSH on standard input and output until the client leaves.
func (c *sshProxyCommand) Run(ctx context.Context, s *session) error {
	id, err := s.sandboxID(ctx, strings.TrimSuffix(c.Host, sshSuffix))
	if err != nil {
		return err
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	if _, err := api.Sandbox(ctx, id); err != nil {
		return err
	}
	run.SurviveBrokenPipes()
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	server := &sshd.Server{API: api, ID: id, Failed: func(err error) { fmt.Fprintln(s.Err, plain.Line(err.Error())) }}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, sshd.NewPipe(s.In, s.Out)) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done(): // nothing wakes a read of standard input, so Serve may still wait
		return context.Cause(ctx)
	}
}
