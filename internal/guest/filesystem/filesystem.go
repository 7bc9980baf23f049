// Package filesystem is the file room of the guest's agent: the Connect service
// filesystem.Filesystem and the plain HTTP handler of /files. It acts as the
// agent's own user, root in a guest, and gives what it makes to the user whom
// the request names. Who may call is decided before a request comes here.
package filesystem

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/guest/account"
	"wrenn/internal/guest/settings"
	"wrenn/proto/gen/envd/filesystem/filesystemconnect"
)

// uploadIdle is how long an upload may send nothing: long enough for a stalled
// network, short enough that a client that vanished does not hold its
// temporary file for ever.
const uploadIdle = 60 * time.Second

// Config is what the room needs.
type Config struct {
	Accounts account.DB
	Settings *settings.Settings // needed
	Log      *slog.Logger       // default: discards
	// UploadIdle ends an upload that sent nothing for so long; default 60 s.
	UploadIdle time.Duration
}

// Service serves files. It is safe for concurrent use; Close it.
type Service struct {
	accounts   account.DB
	settings   *settings.Settings
	log        *slog.Logger
	uploadIdle time.Duration
	watches    registry
}

var _ filesystemconnect.FilesystemHandler = (*Service)(nil)

// New returns a service that is ready.
func New(cfg Config) *Service {
	s := &Service{accounts: cfg.Accounts, settings: cfg.Settings, log: cfg.Log, uploadIdle: cfg.UploadIdle}
	s.watches.open, s.watches.pollers = map[*watch]bool{}, map[string]*poller{}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.uploadIdle <= 0 {
		s.uploadIdle = uploadIdle
	}
	return s
}

// Close ends all watchers; a stream of WatchDir ends when its client took what
// was under way. It never fails and is safe to call more than once.
func (s *Service) Close() error {
	s.watches.close()
	return nil
}

// caller is the user for whom a request acts, and where its relative paths start.
type caller struct {
	*account.User
	workdir string
}

// caller finds the user by name, or the default user when name is "".
func (s *Service) caller(name string) (caller, error) {
	values := s.settings.Get()
	if name == "" {
		name = values.User
	}
	user, err := s.accounts.Lookup(name)
	if errors.Is(err, account.ErrUnknown) {
		return caller{}, wrenn.Errorf(wrenn.Unauthenticated, "invalid username: '%s'", printable(name))
	}
	if err != nil {
		return caller{}, &wrenn.Error{Code: wrenn.Internal, Message: "look up the user", Err: err}
	}
	return caller{User: user, workdir: values.Workdir}, nil
}

// rpcCaller is the user whom an RPC names in its Authorization header.
func (s *Service) rpcCaller(ctx context.Context) (caller, error) {
	return s.caller(account.NameFromHeader(rpcHeader(ctx)))
}

func rpcHeader(ctx context.Context) http.Header {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		return info.RequestHeader()
	}
	return nil
}

// path makes the path of a request absolute. There is no jail: who may call
// the agent may do what root may.
func (c caller) path(requested string) (string, error) {
	path := c.Resolve(requested, c.workdir)
	if strings.ContainsRune(path, 0) {
		return "", wrenn.Errorf(wrenn.Invalid, "a path cannot hold a zero byte")
	}
	return path, nil
}
