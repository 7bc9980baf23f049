package filesystem

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"wrenn.dev"
)

// kinds are the codes for the kernel's errors. The order matters: errors like
// fs.ErrNotExist match several numbers.
var kinds = []struct {
	cause error
	code  wrenn.Code
}{
	{fs.ErrNotExist, wrenn.NotFound},
	{syscall.ENOTEMPTY, wrenn.AlreadyExists}, // before ErrExist, which it also is
	{fs.ErrExist, wrenn.AlreadyExists},
	{syscall.ENOTDIR, wrenn.NotFound}, // a file among the parents
	{syscall.EISDIR, wrenn.Invalid},
	{syscall.EINVAL, wrenn.Invalid},
	{syscall.ENAMETOOLONG, wrenn.Invalid},
	{syscall.ELOOP, wrenn.Invalid},
	{syscall.ENOTSUP, wrenn.Invalid},
	{syscall.ENOSPC, wrenn.NoSpace},
	{syscall.EDQUOT, wrenn.NoSpace},
	{syscall.EMFILE, wrenn.Exhausted},
	{syscall.EROFS, wrenn.PermissionDenied},
	{fs.ErrPermission, wrenn.PermissionDenied},
}

// failure turns an error of the kernel into one for the caller. It returns a
// *wrenn.Error unchanged.
func failure(doing, path string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		return e
	}
	code := wrenn.Internal
	for _, kind := range kinds {
		if errors.Is(err, kind.cause) {
			code = kind.code
			break
		}
	}
	if code == wrenn.NotFound {
		return &wrenn.Error{Code: code, Message: "path '" + printable(path) + "' does not exist", Err: err}
	}
	return &wrenn.Error{Code: code, Message: doing + " '" + printable(path) + "': " + reason(err), Err: err}
}

// reason is the kernel's part of an error, without Go's repetition of the path.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return printable(err.Error())
}

// rpcError returns err as Connect sends it: all codes but NoSpace have the same names.
func (s *Service) rpcError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*connect.Error](err); ok {
		return e // of a stream that failed
	}
	var code connect.Code
	switch own := wrenn.CodeOf(err); {
	case own == wrenn.NoSpace:
		code = connect.CodeResourceExhausted
	case code.UnmarshalText([]byte(own)) != nil:
		code = connect.CodeInternal
	}
	if code == connect.CodeInternal {
		s.log.LogAttrs(ctx, slog.LevelWarn, "file request failed", slog.Any("err", err))
	}
	return connect.NewError(code, errors.New(message(err)))
}

// message returns what the caller may read of err.
func message(err error) string {
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		return e.Message
	}
	return "internal error"
}

// printable replaces bytes that are not UTF-8, which protobuf and JSON cannot hold
// and file names can.
func printable(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
