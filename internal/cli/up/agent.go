package up

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn/internal/durable"
)

const (
	// agentGrace is what the agent may take to stop, with all its sandboxes.
	agentGrace = 2 * time.Minute
	// restartAfter keeps an agent that dies at once from keeping the machine busy.
	restartAfter = time.Second
	maxLine      = 64 << 10 // of what the agent prints
	said         = 20       // lines of it that an error repeats
	maxSandboxes = 1000     // at a time; the scheduler wants a number, memory ends earlier as a rule
)

// AgentConfig says how the host agent works. Program is needed; what is empty is the agent's default.
type AgentConfig struct {
	Program     string // host-agent
	Images      string // directory of guest images
	Driver      string // auto, qemu or firecracker
	QEMU        string // path or name
	Firecracker string // path or name
	Jailer      string // path or name
	Kernel      string // of the guest
	Initrd      string // of that kernel
	Range       string // private addresses of the slots
	Prefix      string // of names of namespaces and links
}

// agent is the host agent, a child process. It may die and come back at any
// time: its sandboxes live on, and the next one adopts them.
type agent struct {
	program, config, socket string
	drain                   bool
	log                     string
	say                     func(string)

	started bool          // it took requests once; only for run
	up      chan struct{} // closed then
}

// newAgent writes the agent's configuration.
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

// file is the configuration, as host-agent serve --config reads it.
func (a *agent) file(cfg Config) map[string]any {
	c := cfg.Agent
	return map[string]any{
		"state": cfg.StateDir, "run": cfg.RunDir, "images": c.Images, "listen": "unix:" + a.socket, "metrics": "off",
		"driver":  given(map[string]any{"name": c.Driver, "qemu": c.QEMU, "firecracker": c.Firecracker, "jailer": c.Jailer, "kernel": c.Kernel, "initrd": c.Initrd}),
		"limits":  map[string]any{"sandboxes": maxSandboxes},
		"network": given(map[string]any{"range": c.Range, "prefix": c.Prefix}),
	}
}

// given leaves out what is empty.
func given(all map[string]any) map[string]any {
	for name, value := range all {
		if value == "" {
			delete(all, name)
		}
	}
	return all
}

// run keeps an agent running until ctx ends, then stops it. One that never
// took requests is not started again: it has a reason, which is in the error.
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

// once runs an agent to its end. It keeps its thread: Pdeathsig comes when the
// thread that forked ends, see prctl(2).
func (a *agent) once(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	logFile, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	words, err := a.listen()
	if err != nil {
		return err
	}
	defer words.log.Close()
	args := []string{"serve", "--config", a.config}
	if a.drain {
		args = append(args, "--drain")
	}
	cmd := exec.CommandContext(ctx, a.program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = agentGrace
	// A session of its own: a terminal's Ctrl-C is ours to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	// A file and no pipe: an agent that outlives us must be able to say so, and go on.
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", a.program, err)
	}
	waiting, stop := context.WithCancel(ctx)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if !a.started && a.answers(waiting, words.hear) {
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
	words.hear()
	return errors.Join(err, words.last())
}

// answers waits until the agent's socket takes connections, which it does when
// the agent is ready for requests, or until ctx ends. Meanwhile it calls hear.
func (a *agent) answers(ctx context.Context, hear func()) bool {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", a.socket)
		hear()
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

// ready waits for the first agent; run says why there is none.
func (a *agent) ready(ctx context.Context) error {
	select {
	case <-a.up:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// listener reads what the agent prints from its log, and tells people what is
// for them: all lines that are no log records.
type listener struct {
	log  *os.File
	say  func(string)
	rest []byte
	tail []string
}

// listen starts at what the log does not have yet.
func (a *agent) listen() (*listener, error) {
	log, err := os.Open(a.log)
	if err != nil {
		return nil, err
	}
	_, err = log.Seek(0, io.SeekEnd)
	return &listener{log: log, say: a.say}, err
}

// hear reads what came since.
func (l *listener) hear() {
	_, _ = io.Copy(listenerLines{l}, l.log) // what cannot be read is for whoever reads the log
}

// listenerLines cuts what is written into lines.
type listenerLines struct{ l *listener }

func (w listenerLines) Write(p []byte) (int, error) {
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

func (l *listener) line(text string) {
	l.tail = append(l.tail, text)
	if len(l.tail) > said {
		l.tail = l.tail[1:]
	}
	if text = strings.TrimSpace(text); text != "" && !strings.HasPrefix(text, "time=") {
		l.say("  " + text)
	}
}

// last is what the agent said last, as an error.
func (l *listener) last() error {
	if len(l.tail) == 0 {
		return nil
	}
	return errors.New("it said: " + strings.Join(l.tail, "\n"))
}
