package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/go-chi/chi/v5"
	"golang.org/x/sync/semaphore"

	"wrenn"
	"wrenn/internal/controlplane/api/internal/oapi"
	"wrenn/internal/controlplane/service"
	"wrenn/internal/plain"
)

const (
	// protocolText is what a stream speaks that asked for nothing, too.
	protocolText   = "wrenn.exec.v1"
	protocolBinary = "wrenn.exec.v1.binary"

	// maxFrame bounds a message of a client.
	maxFrame = 1 << 20
	// maxAhead bounds, in bytes, what a client may have said that its command has
	// not heard yet: it is being started, or takes no input. A frame counts as frameCost at least.
	maxAhead  = maxFrame
	frameCost = 1 << 10
	// maxReason is what fits into a close frame, see RFC 6455, 5.5.
	maxReason = 123
)

// Why a stream ends, apart from failures.
var (
	errClientEnded = errors.New("the client ended the stream")
	errClientGone  = errors.New("the client reads nothing and answers no ping")
	errStopping    = &failure{
		status: http.StatusServiceUnavailable, code: oapi.ErrorCodeUnavailable,
		message: "the server stops; the command goes on: attach to it again",
	}
)

// isUpgrade says whether the client asks for a WebSocket.
func isUpgrade(r *http.Request) bool {
	for _, line := range r.Header.Values("Upgrade") {
		if strings.EqualFold(strings.TrimSpace(line), "websocket") {
			return true
		}
	}
	return false
}

// execStream upgrades when the sandbox runs or can be woken, and serves the stream.
func (s *Server) execStream(w http.ResponseWriter, r *http.Request) {
	caller, id := callerOf(r.Context()), wrenn.SandboxID(chi.URLParam(r, "id"))
	if err := s.checkUpgrade(r); err != nil {
		s.refuse(w, r, err)
		return
	}
	if err := s.service.CheckExec(r.Context(), caller, id); err != nil {
		s.refuse(w, r, err)
		return
	}
	s.streams.Add(1) // while net/http still counts the connection as its own
	defer s.streams.Done()
	conn, err := acceptWebSocket(w, r, protocolBinary, protocolText)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer func() { _ = conn.CloseNow() }() // whatever happens below; net/http does not close it any more
	conn.SetReadLimit(maxFrame)
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	st := &stream{s: s, conn: conn, caller: caller, id: id, opened: make(chan struct{}),
		ahead: make(chan *clientFrame, maxAhead/frameCost), room: semaphore.NewWeighted(maxAhead), obeyed: make(chan struct{})}
	st.encoder.binary = conn.Subprotocol() == protocolBinary
	// The request's context ends when net/http says so, which is not when the stream ends.
	st.serve(context.WithoutCancel(r.Context()))
}

// checkUpgrade returns why a request for a WebSocket cannot be served, whatever it is for.
func (s *Server) checkUpgrade(r *http.Request) error {
	if !isUpgrade(r) {
		return invalid("this is a WebSocket: send Upgrade: websocket")
	}
	if s.stopping.Err() != nil {
		return errStopping
	}
	return nil
}

// acceptWebSocket upgrades a connection. Its error is for the client.
func acceptWebSocket(w http.ResponseWriter, r *http.Request, protocols ...string) (*websocket.Conn, error) {
	conn, err := websocket.Accept(&upgrade{ResponseWriter: w}, r, &websocket.AcceptOptions{
		Subprotocols: protocols,
		// Origin protects what browsers send by themselves, cookies. A page that has the key needs no such protection.
		InsecureSkipVerify: true,
	})
	if err != nil {
		return nil, invalid("the WebSocket handshake is broken: %s", shorten(err.Error()))
	}
	return conn, nil
}

// stream is one open exec/stream.
type stream struct {
	s       *Server
	conn    *websocket.Conn
	caller  service.Caller
	id      wrenn.SandboxID
	encoder encoder

	input bool // the command takes input, as far as is known
	pty   bool // it has a terminal, as far as is known

	opened  chan struct{} // closed when command is set
	command service.ExecStream
	ahead   chan *clientFrame   // what command is to hear; closed when no more comes
	room    *semaphore.Weighted // bytes that ahead can take
	obeyed  chan struct{}       // closed when command has heard what it will hear

	session bool        // the stream can be resumed
	left    atomic.Bool // the client has ended its session

	writing atomic.Bool // a message is on its way to the client
	sending atomic.Bool // the client has said so much ahead that nobody listens to it
}

// serve runs the stream to its end and says goodbye.
func (st *stream) serve(ctx context.Context) {
	ctx, end := context.WithCancelCause(ctx)
	defer context.AfterFunc(st.s.stopping, func() { end(errStopping) })()
	// Whatever waits for the client when the stream is over waits so long and not longer.
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(st.s.times.goodbye, func() { _ = st.conn.CloseNow() })
	})()
	var helpers sync.WaitGroup
	open, err := st.introduction(ctx)
	if err == nil {
		helpers.Go(func() { end(st.takeFrames(ctx)) })
		helpers.Go(func() { st.obeyFrames(ctx) })
		helpers.Go(func() { st.keepAlive(ctx, end) })
		err = st.open(ctx, open)
	}
	if err == nil {
		// Receive waits for the command, not for us; this wakes it.
		context.AfterFunc(ctx, func() { _ = st.command.Close() })
		err = st.passOutput(ctx)
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx) // what else was said then is a consequence
	case st.left.Load():
		err = nil // that is how the host takes leave
	}
	end(nil)
	st.goodbye(ctx, err)
	_ = st.conn.CloseNow() // wakes takeFrames
	helpers.Wait()
}

// opener starts or finds a command.
type opener func(context.Context) (service.ExecStream, error)

// introduction reads the first frame, and returns what it asks for.
func (st *stream) introduction(ctx context.Context) (opener, error) {
	frame, err := st.firstFrame(ctx)
	if err != nil {
		return nil, err
	}
	switch frame.Type {
	case frameStart:
		start := wrenn.ExecStart{
			ExecCommand: wrenn.ExecCommand{
				Cmd: frame.Cmd, Args: frame.Args, Env: frame.Env, Cwd: frame.Cwd, User: frame.User,
				Timeout: time.Duration(frame.TimeoutSec) * time.Second,
			},
			WantStdin: frame.Stdin || frame.PTY != nil,
			Session:   st.resumable(frame),
		}
		if frame.PTY != nil {
			start.PTY = &wrenn.PTYSize{Cols: frame.PTY.Cols, Rows: frame.PTY.Rows}
		}
		st.input, st.pty = start.WantStdin, start.PTY != nil
		return func(ctx context.Context) (service.ExecStream, error) {
			return st.s.service.StartExec(ctx, st.caller, st.id, start)
		}, nil
	case frameAttach:
		st.input, st.pty = true, true
		to := wrenn.ExecAttach{PID: frame.PID, Session: st.resumable(frame), Offset: frame.Offset}
		return func(ctx context.Context) (service.ExecStream, error) {
			return st.s.service.AttachExec(ctx, st.caller, st.id, to)
		}, nil
	}
	return nil, invalid("the first frame is start or attach, not %s", frame.Type)
}

// open waits for the command until ctx ends: a sandbox that is resumed for it
// takes a while, and the service finishes that, whoever still listens.
func (st *stream) open(ctx context.Context, f opener) error {
	type opening struct {
		command service.ExecStream
		err     error
	}
	opened := make(chan opening)
	go func() {
		command, err := f(ctx)
		select {
		case opened <- opening{command, err}:
		case <-ctx.Done():
			if err == nil {
				_ = command.Close() // nobody has used it
			}
		}
	}()
	select {
	case o := <-opened:
		if o.err == nil {
			st.command = o.command
			close(st.opened)
		}
		return o.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// resumable notes the session that the first frame asks for.
func (st *stream) resumable(frame *clientFrame) wrenn.ExecSession {
	st.session = frame.Session != ""
	st.encoder.exact = st.session || frame.Offset != nil
	return wrenn.ExecSession{ID: frame.Session, Hold: time.Duration(frame.HoldSec) * time.Second}
}

// firstFrame waits for it, not for ever: an open socket costs the server something and the client nothing.
func (st *stream) firstFrame(ctx context.Context) (*clientFrame, error) {
	late := errors.New("no first frame came in time")
	wait, cancel := context.WithTimeoutCause(ctx, st.s.times.firstFrame, late)
	defer cancel()
	type arrival struct {
		frame *clientFrame
		err   error
	}
	arrived := make(chan arrival, 1)
	// A read that its context ends takes the connection with it, and with that the last words.
	go func() {
		frame, err := st.read()
		arrived <- arrival{frame, err}
	}()
	select {
	case a := <-arrived:
		return a.frame, a.err
	case <-wait.Done():
		if errors.Is(context.Cause(wait), late) {
			return nil, invalid("the first frame, start or attach, must come within %v", st.s.times.firstFrame)
		}
		return nil, context.Cause(wait)
	}
}

// read returns the next frame of the client.
func (st *stream) read() (*clientFrame, error) {
	kind, text, err := st.conn.Read(context.Background())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errClientEnded, err)
	}
	return st.s.contract.parseFrame(kind == websocket.MessageBinary, text)
}

// passOutput holds one event at a time, so that a client that reads slowly
// slows the command. It returns nil after the exit.
func (st *stream) passOutput(ctx context.Context) error {
	for {
		out, err := st.command.Receive()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return wrenn.Errorf(wrenn.Unavailable, "the stream ended before the command did: attach to it again")
			}
			return err
		}
		for _, m := range st.encoder.encode(out) {
			if err := st.write(m); err != nil {
				return fmt.Errorf("%w: %w", errClientEnded, err)
			}
		}
		if out.Exit != nil {
			return nil
		}
	}
}

// write waits for the client as long as it may take to read.
func (st *stream) write(m outMessage) error {
	// Not the stream's context: one that ends in the middle of a message breaks the connection without a word.
	ctx, cancel := context.WithTimeout(context.Background(), st.s.times.patience)
	defer cancel()
	st.writing.Store(true)
	defer st.writing.Store(false)
	kind := websocket.MessageText
	if m.binary {
		kind = websocket.MessageBinary
	}
	return st.conn.Write(ctx, kind, m.bytes)
}

// takeFrames listens to the client until it leaves or says something wrong. What
// it said before is done first, unless the command is not even there.
func (st *stream) takeFrames(ctx context.Context) error {
	err := st.readFrames(ctx)
	close(st.ahead)
	select {
	case <-st.opened:
		<-st.obeyed
	default:
	}
	return err
}

func (st *stream) readFrames(ctx context.Context) error {
	for {
		frame, err := st.read()
		if err != nil {
			return err
		}
		if err := st.acceptable(frame); err != nil {
			return err
		}
		st.sending.Store(true)
		err = st.room.Acquire(ctx, frame.cost())
		st.sending.Store(false)
		if err != nil {
			return context.Cause(ctx)
		}
		st.ahead <- frame // there is room
	}
}

func (f *clientFrame) cost() int64 { return min(frameCost+int64(len(f.input)), maxAhead) }

// obeyFrames passes on what the client says, once there is a command.
func (st *stream) obeyFrames(ctx context.Context) {
	defer close(st.obeyed)
	select {
	case <-st.opened:
	case <-ctx.Done():
		return
	}
	deaf := false
	for frame := range st.ahead {
		if !deaf {
			if err := st.obey(frame); err != nil {
				// As a rule the command has just ended; what it says last is on its way, and tells more.
				st.s.log.LogAttrs(ctx, slog.LevelDebug, "frame not passed on", slog.String("frame", frame.Type), slog.Any("error", err))
				deaf = true
			}
		}
		st.room.Release(frame.cost())
	}
}

// acceptable says whether a command that was started like this takes the frame.
func (st *stream) acceptable(frame *clientFrame) error {
	switch frame.Type {
	case frameStart, frameAttach:
		return invalid("%s is the first frame or none", frame.Type)
	case frameStdin, frameStdinClose:
		if !st.input {
			return invalid("the command takes no input: start it with stdin")
		}
	case frameResize:
		if !st.pty {
			return invalid("the command has no terminal: start it with pty")
		}
	case frameAck, frameLeave:
		if !st.session {
			return invalid("the stream has no session: start or attach with one")
		}
	}
	return nil
}

func (st *stream) obey(frame *clientFrame) error {
	switch frame.Type {
	case frameStdin:
		return st.command.SendStdin(frame.input)
	case frameStdinClose:
		return st.command.CloseStdin()
	case frameResize:
		return st.command.Resize(wrenn.PTYSize{Cols: frame.Cols, Rows: frame.Rows})
	case frameSignal:
		return st.command.Signal(frame.Signal)
	case frameAck:
		return st.command.Ack(*frame.Offset)
	case frameLeave:
		st.left.Store(true)
		return st.command.Leave()
	default: // stop
		return st.command.Signal("SIGTERM")
	}
}

// keepAlive finds clients that are gone without a word, and keeps what is
// between awake. A ping tells nothing while a message waits to be read, or
// while input that the command does not take keeps the pong unread.
func (st *stream) keepAlive(ctx context.Context, end context.CancelCauseFunc) {
	ticks := time.NewTicker(st.s.times.ping)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if st.writing.Load() || st.sending.Load() {
			continue
		}
		// Not ctx, see write; the end of the connection ends it, too.
		pong, cancel := context.WithTimeout(context.Background(), st.s.times.patience)
		err := st.conn.Ping(pong)
		cancel()
		if err != nil && !st.writing.Load() && !st.sending.Load() {
			end(errClientGone)
			return
		}
	}
}

// goodbye says why the stream ends, to clients that can still hear it.
func (st *stream) goodbye(ctx context.Context, err error) {
	level := slog.LevelDebug
	switch {
	case err == nil:
		st.close(websocket.StatusNormalClosure, "")
		return
	case errors.Is(err, errClientEnded):
		return
	case errors.Is(err, errClientGone):
		st.s.log.LogAttrs(ctx, slog.LevelInfo, "stream cut", slog.Any("error", err))
		return
	}
	f := failureOf(ctx, err)
	code := websocket.StatusInternalError
	switch {
	case errors.Is(err, errStopping):
		code = websocket.StatusGoingAway
	case f.status == http.StatusBadRequest:
		code = websocket.StatusPolicyViolation
	case f.status >= http.StatusInternalServerError:
		level = slog.LevelWarn
	}
	st.s.log.LogAttrs(ctx, level, "stream failed", slog.Any("error", err))
	for _, m := range append(st.encoder.flush(), text(serverFrame{Type: frameError, Code: string(f.code), Data: &f.message})) {
		if st.write(m) != nil {
			return
		}
	}
	st.close(code, f.message)
}

func (st *stream) close(code websocket.StatusCode, reason string) {
	_ = st.conn.Close(code, plain.Cut(reason, maxReason)) // a client that is gone
}

// upgrade lets nothing of an answer through but the upgrade itself: what the
// library says of a broken handshake is plain text.
type upgrade struct {
	http.ResponseWriter
	open bool
}

func (u *upgrade) Unwrap() http.ResponseWriter { return u.ResponseWriter }

func (u *upgrade) WriteHeader(status int) {
	if u.open = status == http.StatusSwitchingProtocols; u.open {
		u.ResponseWriter.WriteHeader(status)
	}
}

func (u *upgrade) Write(p []byte) (int, error) {
	if !u.open {
		return len(p), nil
	}
	return u.ResponseWriter.Write(p)
}
