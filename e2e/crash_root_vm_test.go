//go:build root && vm

package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// atOnce is how many sandboxes are being created when a part is killed.
const atOnce = 6

// part is one of the three processes.
type part struct {
	name        string
	kill, start func(*testing.T)
}

func (s *stack) parts() []part {
	killAgent := func(t *testing.T) {
		t.Helper()
		s.agent.stop(t, syscall.SIGKILL)
	}
	startAgent := func(t *testing.T) {
		t.Helper()
		s.agent.start(t)
	}
	startDatabase := func(t *testing.T) {
		t.Helper()
		s.startDatabase(t)
		s.ready(t)
	}
	return []part{
		{"control plane", s.killControlPlane, s.startControlPlane}, {"agent", killAgent, startAgent}, {"database", s.killDatabase, startDatabase},
	}
}

// TestStack uses one stack for all subtests, because each stack boots a guest once.
func TestStack(t *testing.T) {
	s := newStack(t, "wcra", "10.222.0.0/16")
	// After a failure a part may be dead, and the next subtests would wait for it.
	ok := t.Run("curl", func(t *testing.T) { testCurl(t, s) }) &&
		t.Run("another WebSocket client", func(t *testing.T) { testWebSocketClient(t, s) }) &&
		t.Run("connections are reset", func(t *testing.T) { testResets(t, s) }) &&
		t.Run("without a database", func(t *testing.T) { testWithoutDatabase(t, s) }) &&
		t.Run("all are killed during much output", func(t *testing.T) { testKilledDuringMuchOutput(t, s) })
	for _, p := range s.parts() {
		ok = ok &&
			t.Run(p.name+" is killed during a stream", func(t *testing.T) { testKilledDuringStream(t, s, p) }) &&
			t.Run(p.name+" is killed during creates", func(t *testing.T) { testKilledDuringCreates(t, s, p) })
	}
}

// testKilledDuringCreates shows that every sandbox is usable afterwards, or has
// ended with the reason in its row, and that those whose create succeeded are
// usable.
func testKilledDuringCreates(t *testing.T, s *stack, p part) {
	t.Helper()
	answers := make(chan answer, atOnce)
	for range atOnce {
		go func() {
			sb, err := s.create(t, t.Name())
			answers <- answer{sb, err}
		}()
	}
	var all []answer
	for len(all) < atOnce/3 {
		all = append(all, <-answers)
	}
	p.kill(t) // the other creates may be at any step
	p.start(t)
	for len(all) < atOnce {
		all = append(all, <-answers)
	}
	rows := map[string]client.Sandbox{}
	took := testkit.WaitNoError(t, "each sandbox is usable or gone", func() error {
		list, err := s.list(t, t.Name())
		for _, sb := range list {
			rows[sb.ID] = sb
			if sb.State != client.Running && sb.State != client.Stopped && sb.State != client.Failed {
				err = fmt.Errorf("sandbox %s is %s", sb.ID, sb.State)
			}
		}
		return err
	})
	made := 0
	for _, a := range all {
		if a.err != nil {
			t.Logf("create: %v", a.err)
			continue
		}
		if made++; rows[a.sb.ID].State != client.Running {
			t.Errorf("create succeeded, but %s is %s: %s", a.sb.ID, rows[a.sb.ID].State, rows[a.sb.ID].Reason)
		}
	}
	running := 0
	for id, sb := range rows {
		if sb.State == client.Running {
			running++
			if err := s.usable(t, id); err != nil {
				t.Errorf("%s runs but is not usable: %v", id, err)
			}
		} else if sb.Reason == "" {
			t.Errorf("%s is %s without a reason", id, sb.State)
		} else {
			t.Logf("%s is %s: %s", id, sb.State, sb.Reason)
		}
	}
	t.Logf("%d creates, %d answered with success; %d rows, %d run; all were so %s after the last answer", atOnce, made, len(rows), running, took)
	s.clean(t, t.Name())
}

type answer struct {
	sb  *client.Sandbox
	err error
}

// ticking prints numbers, and every line of its input, until the input ends.
const ticking = `(i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done) & ticks=$!
while read line; do echo "line $line"; done
kill $ticks`

// testKilledDuringStream shows that neither a command nor its stream is
// disturbed: no byte is lost or doubled. Another stream can attach by process ID.
func testKilledDuringStream(t *testing.T, s *stack, p part) {
	t.Helper()
	sb := s.made(t, t.Name())
	stream, err := s.api.Start(t.Context(), sb.ID, client.Command{Cmd: "/bin/sh", Args: []string{"-c", ticking}},
		client.StartOptions{Stdin: true, Hold: 2 * patience})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	f := &follower{Stream: stream}
	if err := f.until("tick 3"); err != nil {
		t.Fatal(err)
	}
	p.kill(t)
	said := make(chan error, 1)
	go func() {
		_, err := f.Write([]byte("to the dead " + p.name + "\n")) // returns when the stream has resumed
		said <- err
	}()
	p.start(t)
	if err := errors.Join(<-said, f.until("line to the dead "+p.name)); err != nil {
		t.Fatal(err)
	}
	before := f.ticks
	if err := f.until(fmt.Sprintf("tick %d", before+3)); err != nil {
		t.Fatal(err)
	}
	other, err := s.api.Attach(t.Context(), sb.ID, stream.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if err := f.until("nothing"); !errors.Is(err, io.EOF) || f.exit.Code != 0 {
		t.Errorf("the command ended with %+v, %v", f.exit, err)
	}
	t.Logf("the %s was back after tick %d of %d", p.name, before, f.ticks)
	s.clean(t, t.Name())
}

// testKilledDuringMuchOutput shows that no byte is lost or doubled when there is
// so much output that every hop buffers some of it.
func testKilledDuringMuchOutput(t *testing.T, s *stack) {
	t.Helper()
	sb := s.made(t, t.Name())
	const numbers = 1_200_000
	stream, err := s.api.Start(t.Context(), sb.ID, client.Command{Cmd: "seq", Args: []string{"1", strconv.Itoa(numbers)}}, client.StartOptions{Hold: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var want bytes.Buffer
	for i := 1; i <= numbers; i++ {
		fmt.Fprintln(&want, i)
	}
	parts, kills := s.parts(), 0
	got := sha256.New()
	exit, err := stream.Copy(&breaks{w: got, every: want.Len() / 9, left: 1, cut: func() {
		p := parts[kills%len(parts)]
		kills++
		p.kill(t)
		p.start(t)
	}}, io.Discard)
	if err != nil || exit.Code != 0 {
		t.Errorf("Copy() = %+v, %v", exit, err)
	}
	if sum := sha256.Sum256(want.Bytes()); !bytes.Equal(got.Sum(nil), sum[:]) {
		t.Errorf("after %d kills the output is not what the command printed", kills)
	}
	t.Logf("%d bytes, %d kills", want.Len(), kills)
	s.clean(t, t.Name())
}

// follower reads what ticking prints and checks that no tick is missing.
type follower struct {
	*client.Stream

	ticks int // the last one
	rest  string
	exit  client.Exit
}

// until reads up to the line, or to the end of the stream.
func (f *follower) until(line string) error {
	for {
		event, err := f.Receive()
		if err != nil {
			return err
		}
		if event.Exit != nil {
			f.exit = *event.Exit
			continue
		}
		if event.Lost > 0 {
			return fmt.Errorf("%d bytes of output are lost", event.Lost)
		}
		lines := strings.Split(f.rest+string(event.Stdout), "\n")
		f.rest = lines[len(lines)-1]
		found := false
		for _, l := range lines[:len(lines)-1] {
			found = found || l == line
			if err := f.count(l); err != nil {
				return err
			}
		}
		if found {
			return nil
		}
	}
}

func (f *follower) count(line string) error {
	number, ok := strings.CutPrefix(line, "tick ")
	if !ok {
		return nil
	}
	n, err := strconv.Atoi(number)
	if err != nil || n != f.ticks+1 {
		return fmt.Errorf("after tick %d came %q", f.ticks, line)
	}
	f.ticks = n
	return nil
}

// testWithoutDatabase shows the responses while the database is down, that
// sandboxes keep running, and that nothing has to be restarted afterwards.
func testWithoutDatabase(t *testing.T, s *stack) {
	t.Helper()
	sb := s.made(t, t.Name())
	began := s.controlPlane
	s.killDatabase(t)
	calls := map[string]func() error{
		"ready":  func() error { return s.api.Ready(t.Context()) },
		"get":    func() error { _, err := s.api.Sandbox(t.Context(), sb.ID); return err },
		"list":   func() error { _, err := s.list(t, t.Name()); return err },
		"create": func() error { _, err := s.create(t, t.Name()); return err },
		"delete": func() error { return s.api.DeleteSandbox(t.Context(), sb.ID) },
		"exec":   func() error { return s.usable(t, sb.ID) },
		"stream": func() error {
			_, err := s.api.Start(t.Context(), sb.ID, client.Command{Cmd: "true"}, client.StartOptions{})
			return err
		},
		"key": func() error { _, err := s.api.Keys(t.Context()); return err },
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			if err := unavailable(call()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if info := s.agent.info(t, sb.ID); info == nil {
		t.Error("the sandbox is gone from its host")
	}
	s.startDatabase(t)
	took := testkit.WaitNoError(t, "the sandbox is usable", func() error { return s.usable(t, sb.ID) })
	t.Logf("usable %s after the database was back", took)
	if s.controlPlane != began {
		t.Error("the control plane was started again")
	}
	s.clean(t, t.Name())
}
