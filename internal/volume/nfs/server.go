// Package nfs serves directories by NFS version 3 (RFC 1813) over TCP, for the
// kernels of guests. A guest's kernel goes on after a pause, a resume or another
// start of the server without a word to its programs: the protocol has no sessions,
// and handles of files are the ones of the host's kernel, which stay valid.
//
// Guests are hostile. A call names a file by a handle, which the kernel accepts for the
// exported file system alone, and by one name in a directory; no path is resolved.
// Each call acts with the ids that it carries, so root in a guest is root in its
// volumes, and nowhere else: mount them with nosuid, nodev and noexec on the host.
//
// There are no locks (NLM): mount with nolock, then programs in one guest can lock
// files against each other, and not against another guest's.
package nfs

import (
	"bufio"
	"crypto/rand"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"sync"
)

// The bounds of one server, which serves one guest.
const (
	maxConnections = 4
	maxCalls       = 16 // at once
)

// Server serves exports to one client. It is safe for concurrent use.
type Server struct {
	exports  []*export
	log      *slog.Logger
	verifier [8]byte // differs after a new start, so that clients send again what was not synced
	calls    chan struct{}
	replies  replies

	mu     sync.Mutex // guards the following
	closed bool
	open   map[io.Closer]struct{}
	work   sync.WaitGroup
}

// New returns a server. It does not close the exports' roots, which must stay open
// until Close has returned. log gets what is wrong with calls, at level debug.
func New(exports []Export, log *slog.Logger) (*Server, error) {
	s := &Server{log: log, calls: make(chan struct{}, maxCalls), open: make(map[io.Closer]struct{})}
	_, _ = rand.Read(s.verifier[:]) // it never fails
	for _, e := range exports {
		made, err := newExport(e)
		if err != nil {
			return nil, err
		}
		s.exports = append(s.exports, made)
	}
	return s, nil
}

// Serve answers on l until Close, and closes it. After Close it returns net.ErrClosed.
func (s *Server) Serve(l net.Listener) error {
	if !s.track(l) {
		return errors.Join(net.ErrClosed, l.Close())
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			s.forget(l)
			return errors.Join(err, ignoreClosed(l.Close()))
		}
		if !s.track(conn) {
			_ = conn.Close() // too many, or the end
			continue
		}
		s.work.Go(func() {
			defer s.forget(conn)
			if err := s.converse(conn); err != nil && !errors.Is(err, net.ErrClosed) {
				s.log.Debug("NFS connection ended", slog.Any("err", err))
			}
		})
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Close closes all listeners and connections, and returns when no call is being
// answered. Twice is allowed.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		_ = c.Close() // the client sends again what has no answer
	}
	s.mu.Unlock()
	s.work.Wait()
}

// track adds something to close, unless it is too late or there is too much.
func (s *Server) track(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) > maxConnections {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *Server) forget(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// converse answers the calls of one connection, several at once.
func (s *Server) converse(conn net.Conn) error {
	var work sync.WaitGroup
	defer work.Wait()
	defer conn.Close()
	var sending sync.Mutex
	in := bufio.NewReaderSize(conn, 32<<10)
	for {
		record, err := readRecord(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c, err := parseCall(record)
		if err != nil {
			return err
		}
		s.calls <- struct{}{}
		work.Go(func() {
			defer func() { <-s.calls }()
			reply := s.answer(c)
			if reply == nil {
				return
			}
			sending.Lock()
			defer sending.Unlock()
			if _, err := conn.Write(reply); err != nil {
				_ = conn.Close() // ends the loop
			}
		})
	}
}

// The programs (RFC 1813, sections 3 and 5).
const (
	programNFS   = 100003
	programMount = 100005
	version      = 3
)

// procedure is one procedure of a program.
type procedure struct {
	name string
	run  func(s *Server, c *call, d *decoder, e *encoder) error
	// absent is how many optional attributes a result has that tells of an error; none is given.
	absent int
	// once tells that a second call has another result, so that a repeated call gets the first one's.
	once bool
}

var nfsProcedures = map[uint32]procedure{
	1:  {"GETATTR", (*Server).getattr, 0, false},
	2:  {"SETATTR", (*Server).setattr, 2, true},
	3:  {"LOOKUP", (*Server).lookup, 1, false},
	4:  {"ACCESS", (*Server).access, 1, false},
	5:  {"READLINK", (*Server).readlink, 1, false},
	6:  {"READ", (*Server).read, 1, false},
	7:  {"WRITE", (*Server).write, 2, false},
	8:  {"CREATE", (*Server).create, 2, true},
	9:  {"MKDIR", (*Server).mkdir, 2, true},
	10: {"SYMLINK", (*Server).symlink, 2, true},
	11: {"MKNOD", (*Server).mknod, 2, true},
	12: {"REMOVE", (*Server).remove, 2, true},
	13: {"RMDIR", (*Server).rmdir, 2, true},
	14: {"RENAME", (*Server).rename, 4, true},
	15: {"LINK", (*Server).link, 3, true},
	16: {"READDIR", (*Server).readdir, 1, false},
	17: {"READDIRPLUS", (*Server).readdirplus, 1, false},
	18: {"FSSTAT", (*Server).fsstat, 1, false},
	19: {"FSINFO", (*Server).fsinfo, 1, false},
	20: {"PATHCONF", (*Server).pathconf, 1, false},
	21: {"COMMIT", (*Server).commit, 2, false},
}

var mountProcedures = map[uint32]procedure{
	1: {"MNT", (*Server).mount, 0, false},
}

// plain are the procedures without a status: NULL of both programs, and the end of a mount.
func plain(c *call) bool {
	const unmount, unmountAll = 3, 4
	return c.procedure == 0 || c.program == programMount && (c.procedure == unmount || c.procedure == unmountAll)
}

// answer returns the reply to a call, or nil for a call that is already being answered.
func (s *Server) answer(c *call) []byte {
	if denied := c.deny(); denied != nil {
		return denied.seal()
	}
	procedures := nfsProcedures
	switch {
	case c.program != programNFS && c.program != programMount:
		return c.replyHead(acceptNoProgram).seal()
	case c.version != version:
		e := c.replyHead(acceptMismatch)
		e.uint32(version, version)
		return e.seal()
	case plain(c):
		return c.replyHead(acceptSuccess).seal()
	case c.program == programMount:
		procedures = mountProcedures
	}
	p, ok := procedures[c.procedure]
	if !ok {
		return c.replyHead(acceptNoProcedure).seal()
	}
	if !p.once {
		return s.run(&p, c)
	}
	return s.replies.do(replyKey{c.xid, c.procedure, crc32.ChecksumIEEE(c.args)}, func() []byte { return s.run(&p, c) })
}

// run runs a procedure and returns its reply.
func (s *Server) run(p *procedure, c *call) []byte {
	var result encoder
	d := &decoder{rest: c.args}
	err := p.run(s, c, d, &result)
	if errors.Is(err, errShort) {
		return c.replyHead(acceptGarbage).seal()
	}
	e := c.replyHead(acceptSuccess)
	if err != nil {
		st := statusOf(err)
		if st == statusServerFault || st == statusIO {
			s.log.Warn("NFS call failed", slog.String("procedure", p.name), slog.Any("err", err))
		}
		e.uint32(uint32(st))
		for range p.absent {
			e.bool(false)
		}
		return e.seal()
	}
	e.uint32(uint32(statusOK))
	return append(e, result...).seal()
}
