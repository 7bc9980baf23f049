package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"wrenn.dev/internal/host/inpod"
	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/parts"
)

// inPodCommand is what a DaemonSet runs.
type inPodCommand struct {
	ControlPlane string `required:"" name:"control-plane" placeholder:"URL" help:"The control plane's API: https://…"`
	TokenFile    string `required:"" type:"path" placeholder:"FILE" help:"The token of the service account, which Kubernetes projects into the pod."`
	CA           string `name:"ca" type:"path" placeholder:"FILE" help:"The authority of the control plane's certificate; default: those that the image trusts."`
	Listen       string `placeholder:"ADDRESS" help:"Where the agent listens, by TLS; default :49980."`
	URL          string `name:"url-of-agent" placeholder:"URL" help:"Where control planes reach the agent; default: its port at the address by which this machine reaches the control plane."`
	Name         string `help:"A name for people; default: the node's."`
	Config       string `type:"path" placeholder:"FILE" help:"The configuration; it is copied to the state directory."`
	HostPID      int    `name:"host-pid" default:"1" help:"A process in the host's mount namespace."`
}

// Run joins and becomes the agent, outside of the pod. It returns only an error.
func (c *inPodCommand) Run(ctx context.Context, line *commandLine, std streams) error {
	if err := c.join(ctx, line.State); err != nil {
		m, missing := member.Open(line.State)
		if missing != nil {
			return err
		}
		// The control plane may be down: the sandboxes need their agent nevertheless.
		fmt.Fprintf(std.err, "cannot join; going on as host %s: %s\n", m.Host(), err)
	}
	to, err := copyAgent(line.State)
	if err != nil {
		return fmt.Errorf("copy the programs to the host: %w", err)
	}
	argv := []string{"host-agent", "--state", line.State, "serve"}
	if c.Config != "" {
		file := filepath.Join(line.State, "host-agent.toml")
		text, err := os.ReadFile(c.Config)
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			return fmt.Errorf("copy the configuration to the host: %w", err)
		}
		argv = append(argv, "--config", file)
	}
	return inpod.Exec(c.HostPID, filepath.Join(to, "host-agent"), argv, onHost(os.Environ()))
}

func (c *inPodCommand) join(ctx context.Context, state string) error {
	token, err := hostjoin.ReadToken(c.TokenFile)
	if err != nil {
		return err
	}
	_, err = member.Join{
		StateDir: state, ControlPlane: c.ControlPlane, Token: token, Name: c.Name, Listen: c.Listen, URL: c.URL, CA: c.CA,
	}.Do(ctx)
	return err
}

// copyAgent copies this program and those of guests to the state directory.
func copyAgent(state string) (string, error) {
	var programs []string
	var problems []error
	for _, name := range []string{"host-agent", "envd", "stage0"} {
		path, err := parts.Find(name)
		programs, problems = append(programs, path), append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return "", err
	}
	return inpod.CopyPrograms(filepath.Join(state, "programs"), programs)
}

// onHost returns the environment for the host, which has its programs in the usual places.
func onHost(env []string) (out []string) {
	for _, entry := range env {
		if !strings.HasPrefix(entry, "PATH=") {
			out = append(out, entry)
		}
	}
	return append(out, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}
