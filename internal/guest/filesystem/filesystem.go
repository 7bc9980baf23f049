// Package filesystem serves the files of a guest: the Connect service
// filesystem.Filesystem and the plain HTTP handler of /files. What it does to
// paths it does with the credentials of the user that the request names, so the
// kernel decides what is allowed. The agent decides who may call before a request
// comes here.
package filesystem

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/settings"
	"wrenn.dev/proto/gen/envd/filesystem/filesystemconnect"
)

// uploadIdle is how long an upload may send nothing: long enough for a stalled
// network, short enough to remove the temporary file of a client that vanished.
const uploadIdle = 60 * time.Second

// Config is what a Service needs.
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

// Close ends all watches; a stream of WatchDir ends when its client has received
// what was under way. It never fails. Twice is allowed.
func (s *Service) Close() error {
	s.watches.close()
	return nil
}

// caller is the user of a request, and the directory where its relative paths start.
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

// as calls f with the caller's credentials: account.User.Do.
func as[T any](user caller, f func() (T, error)) (result T, err error) {
	err = user.Do(func() (err error) {
		result, err = f()
		return err
	})
	return result, err
}

// rpcCaller returns the user that an RPC names in its Authorization header.
func (s *Service) rpcCaller(ctx context.Context) (caller, error) {
	return s.caller(account.NameFromHeader(rpcHeader(ctx)))
}

func rpcHeader(ctx context.Context) http.Header {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		return info.RequestHeader()
	}
	return nil
}

// path makes the path of a request absolute. There is no jail: the
// kernel decides what the user may do.
func (c caller) path(requested string) (string, error) {
	path := c.Resolve(requested, c.workdir)
	if strings.ContainsRune(path, 0) {
		return "", wrenn.Errorf(wrenn.Invalid, "a path cannot hold a zero byte")
	}
	return path, nil
}
