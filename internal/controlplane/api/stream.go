package api

import (
	"cmp"
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

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/wake"
)

const (
	// protocolText is also the protocol of a client that asks for none.
	protocolText   = "wrenn.exec.v1"
	protocolBinary = "wrenn.exec.v1.binary"

	// maxFrame bounds a message of a client.
	maxFrame = 1 << 20
	// window bounds, in bytes, the frames of a client that its command has not received
	// yet because it is being started or reads no input. A frame counts as frameCost at least.
	window    = maxFrame
	frameCost = 1 << 10
	// maxReason is the space in a close frame, see RFC 6455, 5.5.
	maxReason = 123
)

// Why a stream ends, apart from failures.
var (
	errClientEnded = errors.New("the client ended the stream")
	errClientGone  = errors.New("the client reads no message and answers no ping")
	errResumed     = wrenn.Errorf(wrenn.Unavailable, "the sandbox was paused, and runs again or is to be resumed: attach to the command again")
	errStopping    = &failure{
		status: http.StatusServiceUnavailable, code: oapi.ErrorCodeUnavailable,
		message: "the server is stopping; the command continues: attach to it again",
	}
)

// isUpgrade reports whether the client asks for a WebSocket.
func isUpgrade(r *http.Request) bool {
	for _, line := range r.Header.Values("Upgrade") {
		if strings.EqualFold(strings.TrimSpace(line), "websocket") {
			return true
		}
	}
	return false
}

// execStream upgrades if the sandbox runs or its use resumes it, and serves the stream.
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
	defer func() { _ = conn.CloseNow() }() // net/http does not close it any more
	conn.SetReadLimit(maxFrame)
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	st := &stream{s: s, conn: conn, caller: caller, id: id, opened: make(chan struct{}),
		pending: make(chan *clientFrame, window/frameCost), room: semaphore.NewWeighted(window), forwarded: make(chan struct{}), missed: wake.New()}
	st.encoder.binary = conn.Subprotocol() == protocolBinary
	// net/http may end the request's context before the stream ends.
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

	input bool // the command reads input, as far as is known
	pty   bool // it has a terminal, as far as is known

	opened    chan struct{} // closed when command is set
	command   service.ExecStream
	pending   chan *clientFrame   // for command; closed after the last
	room      *semaphore.Weighted // bytes left of window
	forwarded chan struct{}       // closed when forwardFrames has ended

	session bool        // the stream can be resumed
	missed  wake.Chan   // input or a signal could not be forwarded
	left    atomic.Bool // the client has ended its session

	writing atomic.Bool // a message is being written to the client
	blocked atomic.Bool // the window is full, so no frame of the client is read
}

// serve runs the stream to its end and tells the client why it ended.
func (st *stream) serve(ctx context.Context) {
	ctx, end := context.WithCancelCause(ctx)
	defer context.AfterFunc(st.s.stopping, func() { end(errStopping) })()
	// Writes that still wait for the client after the stream's end wait no longer than this.
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(st.s.times.closing, func() { _ = st.conn.CloseNow() })
	})()
	var helpers sync.WaitGroup
	open, err := st.readOpening(ctx)
	if err == nil {
		helpers.Go(func() { end(st.receiveFrames(ctx)) })
		helpers.Go(func() { st.forwardFrames(ctx) })
		helpers.Go(func() { st.keepAlive(ctx, end) })
		err = st.open(ctx, open)
	}
	if err == nil {
		// Receive has no context; closing wakes it.
		context.AfterFunc(ctx, func() { _ = st.command.Close() })
		err = st.awaitResume(ctx, st.sendOutput(ctx))
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx) // other errors are consequences
	case st.left.Load():
		err = nil // the host ends the stream of a session that has ended
	}
	end(nil)
	st.reportEnd(ctx, err)
	_ = st.conn.CloseNow() // wakes receiveFrames
	helpers.Wait()
}

// awaitResume keeps the stream of a sandbox that was paused open until the sandbox
// runs again; then the client attaches again, at its positions. Only for a session,
// and a sandbox that is resumed by its use: input or a signal of the client ends the
// wait, and the attach resumes the sandbox. It returns why the stream ends.
func (st *stream) awaitResume(ctx context.Context, cut error) error {
	if wrenn.CodeOf(cut) != wrenn.CutByPause || !st.session {
		return cut
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	runs := make(chan error, 1)
	go func() { runs <- st.s.service.AwaitRunning(ctx, st.caller, st.id) }()
	select {
	case err := <-runs:
		if wrenn.CodeOf(err) == wrenn.FailedPrecondition {
			return cut
		}
		return cmp.Or(err, error(errResumed))
	case <-st.missed:
		return errResumed
	}
}

// opener starts a command or attaches to one.
type opener func(context.Context) (service.ExecStream, error)

// readOpening reads the first frame, and returns what opens the stream that it asks for.
func (st *stream) readOpening(ctx context.Context) (opener, error) {
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

// open waits for the command until ctx ends. Resuming the sandbox for it takes a
// while, and the service finishes it also when the client is gone.
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
				_ = command.Close() // it was not used
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

// resumable records and returns the session that the first frame asks for.
func (st *stream) resumable(frame *clientFrame) wrenn.ExecSession {
	st.session = frame.Session != ""
	st.encoder.exact = st.session || frame.Offset != nil
	return wrenn.ExecSession{ID: frame.Session, Hold: time.Duration(frame.HoldSec) * time.Second}
}

// firstFrame waits for the first frame, for a bounded time: an open connection costs
// the server memory and the client nothing.
func (st *stream) firstFrame(ctx context.Context) (*clientFrame, error) {
	late := errors.New("no first frame came in time")
	wait, cancel := context.WithTimeoutCause(ctx, st.s.times.firstFrame, late)
	defer cancel()
	type arrival struct {
		frame *clientFrame
		err   error
	}
	arrived := make(chan arrival, 1)
	// A read whose context ends closes the connection, and with it the way for an error message.
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

// sendOutput holds one event at a time, so that a slow reader slows the command. It
// returns nil after the exit.
func (st *stream) sendOutput(ctx context.Context) error {
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

// write waits for a slow client, within times.slowClient.
func (st *stream) write(m outMessage) error {
	// Not the stream's context: if that ends in the middle of a message, the connection breaks without an error message.
	ctx, cancel := context.WithTimeout(context.Background(), st.s.times.slowClient)
	defer cancel()
	st.writing.Store(true)
	defer st.writing.Store(false)
	kind := websocket.MessageText
	if m.binary {
		kind = websocket.MessageBinary
	}
	return st.conn.Write(ctx, kind, m.bytes)
}

// receiveFrames reads frames until the client is gone or sends an invalid one. It
// returns after the frames before it were forwarded, if there is a command.
func (st *stream) receiveFrames(ctx context.Context) error {
	err := st.readFrames(ctx)
	close(st.pending)
	select {
	case <-st.opened:
		<-st.forwarded
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
		if err := st.checkFrame(frame); err != nil {
			return err
		}
		st.blocked.Store(true)
		err = st.room.Acquire(ctx, frame.cost())
		st.blocked.Store(false)
		if err != nil {
			return context.Cause(ctx)
		}
		st.pending <- frame // never blocks: room was acquired
	}
}

func (f *clientFrame) cost() int64 { return min(frameCost+int64(len(f.input)), window) }

// forwardFrames passes the client's frames to the command, once it is open.
func (st *stream) forwardFrames(ctx context.Context) {
	defer close(st.forwarded)
	select {
	case <-st.opened:
	case <-ctx.Done():
		return
	}
	failed := false
	for frame := range st.pending {
		if !failed {
			if err := st.forward(frame); err != nil {
				// Usually the command has just ended; its exit is on the way and says more.
				st.s.log.LogAttrs(ctx, slog.LevelDebug, "cannot forward frame", slog.String("frame", frame.Type), slog.Any("err", err))
				failed = true
			}
		}
		if failed {
			st.noteMissed(frame)
		}
		st.room.Release(frame.cost())
	}
}

// noteMissed records that the client wants something of the command that it cannot get now.
func (st *stream) noteMissed(frame *clientFrame) {
	switch frame.Type {
	case frameStdin, frameStdinClose, frameSignal, frameStop:
		st.missed.Notify()
	}
}

// checkFrame returns an error if the command of this stream cannot receive the frame.
func (st *stream) checkFrame(frame *clientFrame) error {
	switch frame.Type {
	case frameStart, frameAttach:
		return invalid("%s may only be the first frame", frame.Type)
	case frameStdin, frameStdinClose:
		if !st.input {
			return invalid("the command reads no input: start it with stdin")
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

func (st *stream) forward(frame *clientFrame) error {
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

// keepAlive pings, which finds clients that are gone without closing the connection,
// and keeps proxies from closing it. It does not ping while a message waits for the
// client, or while the window is full: then no pong can be expected.
func (st *stream) keepAlive(ctx context.Context, end context.CancelCauseFunc) {
	ticks := time.NewTicker(st.s.times.ping)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if st.writing.Load() || st.blocked.Load() {
			continue
		}
		// Not ctx, see write; the end of the connection ends the ping, too.
		pong, cancel := context.WithTimeout(context.Background(), st.s.times.slowClient)
		err := st.conn.Ping(pong)
		cancel()
		if err != nil && !st.writing.Load() && !st.blocked.Load() {
			end(errClientGone)
			return
		}
	}
}

// reportEnd logs why the stream ends, and tells a client that is still connected.
func (st *stream) reportEnd(ctx context.Context, err error) {
	level := slog.LevelDebug
	switch {
	case err == nil:
		st.close(websocket.StatusNormalClosure, "")
		return
	case errors.Is(err, errClientEnded):
		return
	case errors.Is(err, errClientGone):
		st.s.log.LogAttrs(ctx, slog.LevelInfo, "closed stream of a client that is gone", slog.Any("err", err))
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
	st.s.log.LogAttrs(ctx, level, "stream failed", slog.Any("err", err))
	for _, m := range append(st.encoder.flush(), text(serverFrame{Type: frameError, Code: string(f.code), Data: &f.message})) {
		if st.write(m) != nil {
			return
		}
	}
	st.close(code, f.message)
}

func (st *stream) close(code websocket.StatusCode, reason string) {
	_ = st.conn.Close(code, plain.Cut(reason, maxReason)) // fails if the client is gone
}

// upgrade passes only the upgrade itself: the library answers an invalid handshake
// with plain text, which execStream replaces.
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
