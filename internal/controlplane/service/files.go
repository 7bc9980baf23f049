package service

import (
	"context"
	"io"

	"wrenn"
)

// Files move files into sandboxes and out of them.
type Files struct{ *core }

// WriteFile writes content to path. The file changes as a whole at the end or
// not at all; an error of content is returned, wrapped.
func (s *Files) WriteFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string, content io.Reader) error {
	if err := checkFile(user, path); err != nil {
		return err
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return err
	}
	defer s.used.add(id)
	return host.Write(ctx, id, user, path, content)
}

// ReadFile opens a file. The caller closes it. A cut transfer is an error of
// Read, never io.EOF.
func (s *Files) ReadFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) (io.ReadCloser, error) {
	if err := checkFile(user, path); err != nil {
		return nil, err
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return host.Read(ctx, id, user, path)
}
