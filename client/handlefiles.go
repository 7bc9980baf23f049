package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
)

// Files is the file system of a sandbox. A relative name starts at the user's home.
type Files struct {
	h    *Handle
	opts FileOptions
}

// As returns the same files as another user of the sandbox sees them, who then owns what
// is made.
func (f *Files) As(user string) *Files { return &Files{h: f.h, opts: FileOptions{User: user}} }

// Write writes a file in one step, and makes missing directories.
func (f *Files) Write(ctx context.Context, name string, content []byte) error {
	return f.WriteFrom(ctx, name, bytes.NewReader(content))
}

// WriteFrom is Write of what is read until io.EOF. See Client.WriteFile.
func (f *Files) WriteFrom(ctx context.Context, name string, content io.Reader) error {
	return f.h.c.WriteFile(ctx, f.h.id, name, content, f.opts)
}

// Read returns the content of a file of at most limit bytes; for a longer one the
// error's code is TooLarge. What a sandbox says of a file's size is not to be trusted,
// so there is no Read without a limit.
func (f *Files) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	file, err := f.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, &Error{Code: TooLarge, Message: fmt.Sprintf("%.200q has more than %d bytes: raise the limit, or read it in pieces by Open", name, limit)}
	}
	return content, nil
}

// Open returns the content of a file, of any length; the caller closes it. See
// Client.ReadFile.
func (f *Files) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	return f.h.c.ReadFile(ctx, f.h.id, name, f.opts)
}

// Stat describes a file, directory or link: the code NotFound if it does not exist.
func (f *Files) Stat(ctx context.Context, name string) (*FileEntry, error) {
	return f.h.c.File(ctx, f.h.id, name, f.opts)
}

// List lists the entries of a directory, and with depth 2 and more of the directories
// in it. See Client.Files.
func (f *Files) List(ctx context.Context, name string, depth int) iter.Seq2[FileEntry, error] {
	return f.h.c.Files(ctx, f.h.id, name, ListFiles{FileOptions: f.opts, Depth: depth})
}

// Mkdir makes a directory, and those above it: the code Conflict if it exists.
func (f *Files) Mkdir(ctx context.Context, name string) error {
	_, err := f.h.c.CreateDirectory(ctx, f.h.id, name, f.opts)
	return err
}

// Move gives a file or directory another name. See Client.MoveFile.
func (f *Files) Move(ctx context.Context, from, to string) error {
	_, err := f.h.c.MoveFile(ctx, f.h.id, from, to, f.opts)
	return err
}

// Remove deletes a file or link, or a directory with all that is in it.
func (f *Files) Remove(ctx context.Context, name string) error {
	return f.h.c.DeleteFile(ctx, f.h.id, name, f.opts)
}

// Watch reports the changes in a directory. See Client.WatchFiles.
func (f *Files) Watch(ctx context.Context, name string, recursive bool) (*FileWatch, error) {
	return f.h.c.WatchFiles(ctx, f.h.id, name, WatchFiles{FileOptions: f.opts, Recursive: recursive})
}
