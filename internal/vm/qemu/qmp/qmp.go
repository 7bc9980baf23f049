// Package qmp speaks the QEMU Machine Protocol over a Unix socket: commands,
// their answers, events, and file descriptors that go along.
//
// See QEMU's docs/interop/qmp-spec. The other end is not trusted: a guest may
// have taken it over.
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
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message of QEMU. The longest that we ask for, an
// answer to query-status, has 100 bytes; the greeting has 300.
const maxMessage = 64 << 10

// writeTimeout bounds handing over a command: a few hundred bytes into a
// socket's buffer. It is reached only when QEMU has stopped reading.
const writeTimeout = 10 * time.Second

// Event is what QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage // an object, or nil
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Desc, e.Class) }

// ErrClosed is in the errors of commands when the connection is gone.
var ErrClosed = errors.New("the QMP connection is closed")

// Client is a connection to one QEMU. It is safe for concurrent use. Close it.
type Client struct {
	conn    *net.UnixConn
	onEvent func(Event)
	gone    chan struct{} // closed when the reader has ended
	goneErr error         // why; valid when gone is closed

	mu      sync.Mutex // guards the following, and writing
	nextID  uint64
	waiting map[uint64]chan<- answer
}

type answer struct {
	value json.RawMessage
	err   error
}

// message is any message of QEMU.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Return   json.RawMessage `json:"return"`
	Error    *Error          `json:"error"`
	ID       *uint64         `json:"id"`
}

// New takes over conn, also when it fails, and returns when QEMU takes commands
// or ctx ends. onEvent is called for each event, one after the other, on
// the goroutine that reads: it must not block and must not use the client. It
// may be nil.
func New(ctx context.Context, conn *net.UnixConn, onEvent func(Event)) (*Client, error) {
	c := &Client{
		conn:    conn,
		onEvent: onEvent,
		gone:    make(chan struct{}),
		waiting: map[uint64]chan<- answer{},
	}
	greeted := make(chan struct{})
	go c.read(greeted)
	select {
	case <-greeted:
	case <-c.gone:
		return nil, errors.Join(c.goneErr, c.Close())
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), c.Close())
	}
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends the connection and all commands that wait. It returns when the
// last call of onEvent has. Twice is allowed.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.gone
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Done is closed when the connection is gone and the last event was delivered.
func (c *Client) Done() <-chan struct{} { return c.gone }

// Do executes a command and decodes what it returns into result, unless that
// is nil. A refusal is an *Error. When ctx ends first, the command may still
// be executed.
func (c *Client) Do(ctx context.Context, command string, arguments, result any) error {
	return c.do(ctx, command, arguments, result, nil)
}

// DoWithFile is Do with a file that goes along, for add-fd and getfd. The
// caller still owns, and closes, its own descriptor.
func (c *Client) DoWithFile(ctx context.Context, command string, arguments, result any, file *os.File) error {
	return c.do(ctx, command, arguments, result, file)
}

func (c *Client) do(ctx context.Context, command string, arguments, result any, file *os.File) error {
	answers := make(chan answer, 1)
	id, err := c.send(command, arguments, file, answers)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	defer c.forget(id)
	var a answer
	select {
	case a = <-answers:
	case <-c.gone:
		select {
		case a = <-answers: // it came just before the end
		default:
			a.err = c.goneErr
		}
	case <-ctx.Done():
		a.err = context.Cause(ctx)
	}
	if a.err != nil {
		return fmt.Errorf("qmp %s: %w", command, a.err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.value, result); err != nil {
		return fmt.Errorf("qmp %s: answer: %w", command, err)
	}
	return nil
}

func (c *Client) send(command string, arguments any, file *os.File, answers chan<- answer) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	id := c.nextID
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return 0, err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.waiting[id] = answers
	n, _, err := c.conn.WriteMsgUnix(append(line, '\n'), rights, nil)
	if err == nil && n <= len(line) {
		err = io.ErrShortWrite
	}
	if err != nil {
		delete(c.waiting, id)
		return 0, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return id, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// read delivers messages until the connection ends.
func (c *Client) read(greeted chan<- struct{}) {
	err := c.deliverAll(greeted)
	c.goneErr = fmt.Errorf("%w: %w", ErrClosed, err)
	close(c.gone)
}

func (c *Client) deliverAll(greeted chan<- struct{}) error {
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 0, 1024), maxMessage)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("message of QEMU: %w", err)
		}
		switch {
		case m.Greeting != nil && greeted != nil:
			close(greeted)
			greeted = nil
		case m.Event != "":
			if c.onEvent != nil {
				c.onEvent(Event{Name: m.Event, Data: m.Data})
			}
		case m.ID != nil:
			c.answer(*m.ID, m)
		case m.Error != nil: // of something that QEMU could not parse, so it has no id
			return m.Error
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (c *Client) answer(id uint64, m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting, ok := c.waiting[id]
	if !ok {
		return // its caller has gone
	}
	delete(c.waiting, id) // so that a second answer cannot block on the channel
	if m.Error != nil {
		waiting <- answer{err: m.Error}
		return
	}
	waiting <- answer{value: m.Return}
}
