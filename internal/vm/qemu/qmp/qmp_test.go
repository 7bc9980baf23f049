package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\n"

// pair is a connection and its other end.
func pair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { conn.Close() })
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// command is what the stand-in for QEMU got.
type command struct {
	Execute   string
	Arguments json.RawMessage
	ID        uint64
}

// serve plays QEMU: it greets and answers what reply says for each command,
// with %d as its id, until reply returns "".
func serve(t *testing.T, conn *net.UnixConn, reply func(command) string) {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		defer conn.Close()
		io.WriteString(conn, greeting)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var cmd command
			if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
				t.Errorf("%q: %v", lines.Text(), err)
				return
			}
			answer := `{"return": {}, "id": %d}`
			if cmd.Execute != "qmp_capabilities" {
				answer = reply(cmd)
			}
			if answer == "" {
				return
			}
			io.WriteString(conn, strings.ReplaceAll(answer, "%d", fmt.Sprint(cmd.ID))+"\r\n")
		}
	}()
}

func dial(t *testing.T, onEvent func(Event), reply func(command) string) *Client {
	t.Helper()
	ours, theirs := pair(t)
	serve(t, theirs, reply)
	c, err := New(t.Context(), ours, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDo(t *testing.T) {
	c := dial(t, nil, func(cmd command) string {
		if cmd.Execute == "refused" {
			return `{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`
		}
		return `{"return": {"status": "running", "args": ` + string(cmd.Arguments) + `}, "id": %d}`
	})
	var got struct {
		Status string
		Args   map[string]int
	}
	if err := c.Do(t.Context(), "query-status", map[string]int{"a": 1}, &got); err != nil || got.Status != "running" || got.Args["a"] != 1 {
		t.Errorf("Do() = %+v, %v", got, err)
	}
	err := c.Do(t.Context(), "refused", nil, nil)
	if refusal, ok := errors.AsType[*Error](err); !ok || refusal.Desc != "no" {
		t.Errorf("Do() = %v, want QEMU's refusal", err)
	}
	var wrong []string
	if err := c.Do(t.Context(), "query-status", map[string]int{}, &wrong); err == nil {
		t.Error("an answer of another type was decoded")
	}
}

func TestAnswersFindTheirCommands(t *testing.T) {
	var mu sync.Mutex
	var held []string
	c := dial(t, nil, func(cmd command) string { // pairs of answers, the second first
		mu.Lock()
		defer mu.Unlock()
		held = append(held, fmt.Sprintf(`{"return": %s, "id": %d}`, cmd.Arguments, cmd.ID))
		if len(held) < 2 {
			return `{"event": "NOTHING"}`
		}
		out := held[1] + "\n" + held[0]
		held = nil
		return out
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			var got int
			if err := c.Do(t.Context(), "echo", i, &got); err != nil || got != i {
				t.Errorf("Do(%d) = %d, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

func TestEventsComeInOrder(t *testing.T) {
	var got []string
	c := dial(t, func(ev Event) { got = append(got, ev.Name+string(ev.Data)) }, func(command) string {
		return `{"event": "STOP"}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true}}` + "\n" + `{"return": {}, "id": %d}`
	})
	if err := c.Do(t.Context(), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, " "); s != `STOP SHUTDOWN{"guest": true}` {
		t.Errorf("events = %s", s)
	}
}

func TestFileGoesAlong(t *testing.T) {
	ours, theirs := pair(t)
	result := make(chan error, 1)
	go func() { result <- takeFile(theirs) }()
	c, err := New(t.Context(), ours, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := c.DoWithFile(t.Context(), "add-fd", nil, nil, w); err != nil {
		t.Error(err)
	}
	w.Close()
	if got, _ := io.ReadAll(r); string(got) != "through" {
		t.Errorf("the file got %q", got)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// takeFile plays a QEMU that writes into the file it gets.
func takeFile(conn *net.UnixConn) error {
	io.WriteString(conn, greeting)
	for id := 1; id <= 2; id++ {
		data, oob := make([]byte, 1024), make([]byte, 128)
		_, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
		if err != nil {
			return err
		}
		if oobn > 0 {
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				return err
			}
			fds, err := unix.ParseUnixRights(&msgs[0])
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fds[0]), "got")
			f.WriteString("through")
			f.Close()
		}
		fmt.Fprintf(conn, "{\"return\": {}, \"id\": %d}\n", id)
	}
	return nil
}

func TestQEMUGoesAway(t *testing.T) {
	c := dial(t, nil, func(command) string { return "" })
	if err := c.Do(t.Context(), "quit", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Do() = %v, want ErrClosed", err)
	}
	<-c.Done()
	if err := c.Do(t.Context(), "stop", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Do() afterwards = %v, want ErrClosed", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDoEndsWithItsContext(t *testing.T) {
	c := dial(t, nil, func(command) string { return `{"event": "BUSY"}` })
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := c.Do(ctx, "slow", nil, nil); !errors.Is(err, why) {
		t.Errorf("Do() = %v, want %v", err, why)
	}
	if len(c.waiting) != 0 {
		t.Errorf("%d commands are still waited for", len(c.waiting))
	}
}

func TestHostileMessages(t *testing.T) {
	for name, reply := range map[string]string{
		"not JSON":                "hello",
		"endless message":         `{"event": "` + strings.Repeat("x", 2*maxMessage) + `"}`,
		"error without a command": `{"error": {"class": "GenericError", "desc": "parse"}}`,
	} {
		c := dial(t, nil, func(command) string { return reply })
		if err := c.Do(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Do() = %v, want ErrClosed", name, err)
		}
	}
	c := dial(t, nil, func(command) string {
		return `{"return": {}, "id": 999}` + "\n" + greeting + `{"return": {}, "id": %d}` + "\n" + `{"return": {}, "id": %d}`
	})
	for range 3 {
		if err := c.Do(t.Context(), "x", nil, nil); err != nil {
			t.Errorf("answers twice and without a command: %v", err)
		}
	}
}

func TestNewEndsWithItsContext(t *testing.T) {
	ours, _ := pair(t) // QEMU sends no greeting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(ctx, ours, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("New() = %v, want Canceled", err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"event": "STOP"}` + "\n"))
	f.Add([]byte(`{"error": {}, "id": 1}` + "\n" + `{"id": -1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := pair(t)
		go func() {
			theirs.Write(data)
			theirs.Close()
		}()
		c, err := New(t.Context(), ours, func(Event) {})
		if err == nil {
			c.Close()
		}
	})
}
