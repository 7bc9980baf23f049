package up

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn.dev/internal/durable"
)

const (
	// agentGrace is how long the agent may take to stop, with all its sandboxes.
	agentGrace = 2 * time.Minute
	// restartAfter is the pause before a restart, so that an agent that fails at
	// once does not keep the machine busy.
	restartAfter = time.Second
	maxLine      = 64 << 10 // bytes of a line that the agent prints
	tailLines    = 20       // last lines of the agent's output in an error
	maxSandboxes = 1000     // at a time; the scheduler needs a number, memory usually runs out earlier
)

// AgentConfig configures the host agent. Program is required; empty fields mean the agent's defaults.
type AgentConfig struct {
	Program     string // host-agent
	Images      string // directory of guest images
	Driver      string // auto, firecracker, qemu-kvm or qemu
	QEMU        string // path or name
	Firecracker string // path or name
	Jailer      string // path or name
	Unjailed    bool   // see host.DriverConfig
	NoDownload  bool   // see host.DriverConfig
	Kernel      string // of the guest
	Initrd      string // of that kernel
	Range       string // private addresses of the slots
	Prefix      string // of names of namespaces and links
}

// agent is the host agent, a child process. It may end and be restarted at any
// time: its sandboxes keep running, and the next agent adopts them.
type agent struct {
	program, config, socket string
	drain                   bool
	log                     string
	say                     func(string)

	started bool          // an agent has accepted requests; used only by run
	up      chan struct{} // closed when started becomes true
}

// newAgent writes the agent's configuration file. It does not start the agent.
func newAgent(cfg Config) (*agent, error) {
	a := &agent{
		program: cfg.Agent.Program, config: filepath.Join(cfg.StateDir, "host-agent.toml"), socket: filepath.Join(cfg.RunDir, "agent.sock"),
		drain: cfg.Destroy, log: filepath.Join(cfg.StateDir, "logs", "host-agent.log"), say: cfg.Say, up: make(chan struct{}),
	}
	text, err := toml.Marshal(a.file(cfg))
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(a.config, text, 0o600); err != nil {
		return nil, fmt.Errorf("write the host agent's configuration: %w", err)
	}
	return a, nil
}

// file returns the configuration in the form that host-agent serve --config reads.
func (a *agent) file(cfg Config) map[string]any {
	c := cfg.Agent
	return map[string]any{
		"state": cfg.StateDir, "run": cfg.RunDir, "images": c.Images, "listen": "unix:" + a.socket, "metrics": cmp.Or(cfg.AgentMetrics, "off"),
		"driver":  given(map[string]any{"name": c.Driver, "qemu": c.QEMU, "firecracker": c.Firecracker, "jailer": c.Jailer, "unjailed": c.Unjailed, "no_download": c.NoDownload, "kernel": c.Kernel, "initrd": c.Initrd}),
		"limits":  map[string]any{"sandboxes": maxSandboxes},
		"traces":  map[string]any{"endpoint": cfg.Traces.Endpoint},
		"network": given(map[string]any{"range": c.Range, "prefix": c.Prefix}),
	}
}

// given removes values that are not set.
func given(all map[string]any) map[string]any {
	for name, value := range all {
		if value == "" || value == false {
			delete(all, name)
		}
	}
	return all
}

// run keeps an agent running until ctx ends, then stops it. When no agent ever
// accepted requests, run does not restart it and returns the reason.
func (a *agent) run(ctx context.Context) error {
	for {
		err := a.once(ctx)
		if ctx.Err() != nil || !a.started {
			return err
		}
		a.say(fmt.Sprintf("the host agent ended (%v) and is started again; its log is %s", err, a.log))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartAfter):
		}
	}
}

// once runs an agent until it ends. The goroutine keeps its thread: Pdeathsig is
// sent when the thread that forked ends, see prctl(2).
func (a *agent) once(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	logFile, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	output, err := a.followLog()
	if err != nil {
		return err
	}
	defer output.log.Close()
	args := []string{"serve", "--config", a.config}
	if a.drain {
		args = append(args, "--drain")
	}
	cmd := exec.CommandContext(ctx, a.program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = agentGrace
	// The agent gets its own session, so that only this process gets a terminal's Ctrl-C.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	// A file, not a pipe: an agent that outlives this process must still be able to log.
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// Its readiness is not that of this process, of which systemd is told.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", a.program, err)
	}
	waiting, stop := context.WithCancel(ctx)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if !a.started && a.answers(waiting, output.read) {
			a.started = true
			close(a.up)
		}
	}()
	err = cmd.Wait()
	stop()
	<-answered
	if ctx.Err() != nil {
		if cmd.ProcessState.Success() {
			return nil
		}
		return fmt.Errorf("stop the host agent: %w", err)
	}
	if err == nil {
		err = errEnded
	}
	if a.started {
		return err
	}
	output.read()
	return errors.Join(err, output.last())
}

// answers waits until the agent's socket accepts connections, which it does when
// the agent is ready for requests, and returns true. It returns false when ctx
// ends first. While it waits it calls readOutput.
func (a *agent) answers(ctx context.Context, readOutput func()) bool {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", a.socket)
		readOutput()
		if err == nil {
			conn.Close()
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// ready waits until the first agent accepts requests. When none does, run returns the reason.
func (a *agent) ready(ctx context.Context) error {
	select {
	case <-a.up:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// logFollower reads the agent's output from its log and passes the lines meant
// for users to say: all that are not log records.
type logFollower struct {
	log  *os.File
	say  func(string)
	rest []byte
	tail []string
}

// followLog returns a follower that begins at the current end of the log.
func (a *agent) followLog() (*logFollower, error) {
	log, err := os.Open(a.log)
	if err != nil {
		return nil, err
	}
	_, err = log.Seek(0, io.SeekEnd)
	return &logFollower{log: log, say: a.say}, err
}

// read reads the output since the last call.
func (l *logFollower) read() {
	_, _ = io.Copy(followerLines{l}, l.log) // on an error the user can still read the log
}

// followerLines splits its input into lines.
type followerLines struct{ l *logFollower }

func (w followerLines) Write(p []byte) (int, error) {
	l := w.l
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			break
		}
		l.line(string(line))
		l.rest = bytes.Clone(rest)
	}
	if len(l.rest) > maxLine {
		l.rest = nil
	}
	return len(p), nil
}

func (l *logFollower) line(text string) {
	l.tail = append(l.tail, text)
	if len(l.tail) > tailLines {
		l.tail = l.tail[1:]
	}
	if text = strings.TrimSpace(text); text != "" && !strings.HasPrefix(text, "time=") {
		l.say("  " + text)
	}
}

// last returns the last lines of the agent's output as an error, nil if there are none.
func (l *logFollower) last() error {
	if len(l.tail) == 0 {
		return nil
	}
	return errors.New("its last output: " + strings.Join(l.tail, "\n"))
}
