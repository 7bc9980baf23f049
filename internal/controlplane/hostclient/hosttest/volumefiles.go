package hosttest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/volume/tree"
	"wrenn.dev/internal/wire"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

// inVolume calls f with the files of a volume, between the hooks. Without the right to
// change owners files belong to the user of the test.
func (a *Agent) inVolume(ctx context.Context, method, id string, f func(*tree.Tree) error) error {
	return a.stream(ctx, method, id, func() error {
		if a.VolumeDir == "" || !a.hasVolume(id) {
			return wire.ToConnect(wrenn.Errorf(wrenn.NotFound, "there is no volume %s on this host", id))
		}
		path := filepath.Join(a.VolumeDir, id)
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		files, err := tree.Open(dir)
		if err != nil {
			return err
		}
		defer func() { _ = files.Close() }() // a directory has no data
		return wire.ToConnect(f(files))
	})
}

func (a *Agent) hasVolume(id string) (has bool) {
	_ = a.locked(func() error { has = a.volumes[id]; return nil }) // never fails
	return has
}

func ownedByTest(m *hostagentv1.VolumeAttributes) wrenn.VolumeAttributes {
	attributes := hostwire.ParseVolumeAttributes(m)
	if os.Geteuid() != 0 {
		attributes.UID, attributes.GID = new(uint32(os.Getuid())), new(uint32(os.Getgid()))
	}
	return attributes
}

// entryOf is inVolume for what has an entry.
func (a *Agent) entryOf(ctx context.Context, method, id string, f func(*tree.Tree) (*wrenn.VolumeEntry, error)) (out *hostagentv1.VolumeEntry, err error) {
	err = a.inVolume(ctx, method, id, func(t *tree.Tree) error {
		e, err := f(t)
		if err == nil {
			out = hostwire.VolumeEntry(*e)
		}
		return err
	})
	return out, err
}

// StatVolumeFile describes a file.
func (a *Agent) StatVolumeFile(ctx context.Context, req *hostagentv1.VolumeFileRequest) (*hostagentv1.StatVolumeFileResponse, error) {
	e, err := a.entryOf(ctx, "StatVolumeFile", req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) { return t.Stat(req.GetPath()) })
	return &hostagentv1.StatVolumeFileResponse{Entry: e}, err
}

// ListVolumeFiles lists a directory.
func (a *Agent) ListVolumeFiles(ctx context.Context, req *hostagentv1.ListVolumeFilesRequest) (*hostagentv1.ListVolumeFilesResponse, error) {
	out := &hostagentv1.ListVolumeFilesResponse{}
	return out, a.inVolume(ctx, "ListVolumeFiles", req.GetVolumeId(), func(t *tree.Tree) error {
		entries, err := t.List(ctx, req.GetPath(), int(req.GetDepth()))
		for _, e := range entries {
			out.Entries = append(out.Entries, hostwire.VolumeEntry(e))
		}
		return err
	})
}

// MakeVolumeDirectory makes a directory.
func (a *Agent) MakeVolumeDirectory(ctx context.Context, req *hostagentv1.MakeVolumeDirectoryRequest) (*hostagentv1.MakeVolumeDirectoryResponse, error) {
	e, err := a.entryOf(ctx, "MakeVolumeDirectory", req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		return t.MakeDir(req.GetPath(), ownedByTest(req.GetAttributes()), req.GetParents())
	})
	return &hostagentv1.MakeVolumeDirectoryResponse{Entry: e}, err
}

// SetVolumeFile changes attributes.
func (a *Agent) SetVolumeFile(ctx context.Context, req *hostagentv1.SetVolumeFileRequest) (*hostagentv1.SetVolumeFileResponse, error) {
	e, err := a.entryOf(ctx, "SetVolumeFile", req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		return t.Set(req.GetPath(), ownedByTest(req.GetAttributes()))
	})
	return &hostagentv1.SetVolumeFileResponse{Entry: e}, err
}

// RenameVolumeFile gives a file another path.
func (a *Agent) RenameVolumeFile(ctx context.Context, req *hostagentv1.RenameVolumeFileRequest) (*hostagentv1.RenameVolumeFileResponse, error) {
	e, err := a.entryOf(ctx, "RenameVolumeFile", req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		return t.Rename(req.GetPath(), req.GetNewPath())
	})
	return &hostagentv1.RenameVolumeFileResponse{Entry: e}, err
}

// RemoveVolumeFile removes a file or directory.
func (a *Agent) RemoveVolumeFile(ctx context.Context, req *hostagentv1.VolumeFileRequest) (*hostagentv1.RemoveVolumeFileResponse, error) {
	return &hostagentv1.RemoveVolumeFileResponse{}, a.inVolume(ctx, "RemoveVolumeFile", req.GetVolumeId(), func(t *tree.Tree) error {
		return t.Remove(ctx, req.GetPath())
	})
}

// ReadVolumeFile reads a file.
func (a *Agent) ReadVolumeFile(ctx context.Context, req *hostagentv1.VolumeFileRequest, s *connect.ServerStream[hostagentv1.ReadFileStreamResponse]) error {
	return a.inVolume(ctx, "ReadVolumeFile", req.GetVolumeId(), func(t *tree.Tree) error {
		file, err := t.Read(req.GetPath())
		if err != nil {
			return err
		}
		defer file.Close()
		buf := make([]byte, chunkSize)
		for {
			n, err := file.Read(buf)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = s.Send(&hostagentv1.ReadFileStreamResponse{Chunk: buf[:n]})
			}
			if err != nil {
				return err
			}
		}
	})
}

// WriteVolumeFile writes a file.
func (a *Agent) WriteVolumeFile(ctx context.Context, s *connect.ClientStream[hostagentv1.WriteFileStreamRequest]) (*hostagentv1.WriteVolumeFileResponse, error) {
	if !s.Receive() || s.Msg().GetVolume() == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.Join(errors.New("volume is missing"), s.Err()))
	}
	meta := s.Msg().GetVolume()
	e, err := a.entryOf(ctx, "WriteVolumeFile", meta.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		w := hostwire.ParseVolumeWrite(meta)
		w.VolumeAttributes = ownedByTest(meta.GetAttributes())
		return t.Write(meta.GetPath(), w, &received{stream: s})
	})
	return &hostagentv1.WriteVolumeFileResponse{Entry: e}, err
}

// received reads the chunks of a file.
type received struct {
	stream *connect.ClientStream[hostagentv1.WriteFileStreamRequest]
	rest   []byte
}

func (r *received) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		r.rest = r.stream.Msg().GetChunk()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
