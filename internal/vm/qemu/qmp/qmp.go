// Package qmp is a client of the QEMU Machine Protocol over a Unix socket:
// commands, their answers, events, and file descriptors that are passed along.
//
// See QEMU's docs/interop/qmp-spec. The client does not trust QEMU: a guest may
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

// maxMessage bounds one message of QEMU. The longest that we use, an answer to
// query-status, has 100 bytes; the greeting has 300.
const maxMessage = 64 << 10

// writeTimeout bounds the write of a command: a few hundred bytes into a socket's
// buffer. It is reached only if QEMU has stopped reading.
const writeTimeout = 10 * time.Second

// Event is a message of QEMU that answers no command.
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

// ErrClosed is in the errors of commands when the connection has ended.
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

// New returns a client of the QEMU at the other end of conn when that accepts
// commands. It owns conn, also if it fails. onEvent is called for each event, one
// after the other, on the goroutine that reads: it must not block and must not use
// the client. It may be nil.
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

// Close ends the connection and all waiting commands. It returns after the last
// call of onEvent. Twice is allowed.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.gone
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Done returns a channel that is closed when the connection has ended and the last
// event was delivered.
func (c *Client) Done() <-chan struct{} { return c.gone }

// Do executes a command and decodes its answer into result, unless that is nil. If
// QEMU refuses the command the error is an *Error. If ctx ends first QEMU may still
// execute the command.
func (c *Client) Do(ctx context.Context, command string, arguments, result any) error {
	return c.do(ctx, command, arguments, result, nil)
}

// DoWithFile is Do that passes a file along, for add-fd and getfd. The caller still
// owns its descriptor and closes it.
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
		case a = <-answers: // the answer came just before the end
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
		case m.Error != nil: // QEMU could not parse a command, so there is no id
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
		return // its caller no longer waits
	}
	delete(c.waiting, id) // so that a second answer cannot block on the channel
	if m.Error != nil {
		waiting <- answer{err: m.Error}
		return
	}
	waiting <- answer{value: m.Return}
}
