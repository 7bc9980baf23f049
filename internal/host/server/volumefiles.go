package server

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/volume/tree"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// maxVolumeCalls bounds the calls for the files of one volume at a time: each has a
// thread of this host while its disk is slow, and transfers have buffers.
const maxVolumeCalls = 32

// volumeCalls counts the calls for the files of each volume. The zero value is ready.
type volumeCalls struct {
	mu     sync.Mutex // guards counts
	counts map[wrenn.VolumeID]int
}

func (v *volumeCalls) add(id wrenn.VolumeID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.counts[id] >= maxVolumeCalls {
		return wrenn.Errorf(wrenn.Exhausted, "%d calls for files of this volume are open, which is the limit: wait for one", maxVolumeCalls)
	}
	if v.counts == nil {
		v.counts = map[wrenn.VolumeID]int{}
	}
	v.counts[id]++
	return nil
}

func (v *volumeCalls) done(id wrenn.VolumeID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.counts[id]--; v.counts[id] == 0 {
		delete(v.counts, id)
	}
}

// files returns the files of a volume, which release gives back.
func (s *server) files(text string) (files *tree.Tree, release func(), err error) {
	id, err := wrenn.ParseVolumeID(text)
	if err != nil {
		return nil, nil, err
	}
	if err := s.volumeCalls.add(id); err != nil {
		return nil, nil, err
	}
	files, unmount, err := s.cfg.Volumes.Files(id)
	if err != nil {
		s.volumeCalls.done(id)
		return nil, nil, err
	}
	return files, func() { unmount(); s.volumeCalls.done(id) }, nil
}

// entryOf has f work on the files of a volume and returns the message of its entry.
func (s *server) entryOf(id string, f func(*tree.Tree) (*wrenn.VolumeEntry, error)) (*pb.VolumeEntry, error) {
	files, release, err := s.files(id)
	if err != nil {
		return nil, err
	}
	defer release()
	e, err := f(files)
	if err != nil {
		return nil, err
	}
	return hostwire.VolumeEntry(*e), nil
}

func (s *server) StatVolumeFile(_ context.Context, req *pb.VolumeFileRequest) (*pb.StatVolumeFileResponse, error) {
	e, err := s.entryOf(req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) { return t.Stat(req.GetPath()) })
	return &pb.StatVolumeFileResponse{Entry: e}, err
}

func (s *server) ListVolumeFiles(ctx context.Context, req *pb.ListVolumeFilesRequest) (*pb.ListVolumeFilesResponse, error) {
	files, release, err := s.files(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	entries, err := files.List(ctx, req.GetPath(), int(req.GetDepth()))
	out := &pb.ListVolumeFilesResponse{}
	for _, e := range entries {
		out.Entries = append(out.Entries, hostwire.VolumeEntry(e))
	}
	return out, err
}

func (s *server) MakeVolumeDirectory(_ context.Context, req *pb.MakeVolumeDirectoryRequest) (*pb.MakeVolumeDirectoryResponse, error) {
	e, err := s.entryOf(req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		return t.MakeDir(req.GetPath(), hostwire.ParseVolumeAttributes(req.GetAttributes()), req.GetParents())
	})
	return &pb.MakeVolumeDirectoryResponse{Entry: e}, err
}

func (s *server) SetVolumeFile(_ context.Context, req *pb.SetVolumeFileRequest) (*pb.SetVolumeFileResponse, error) {
	e, err := s.entryOf(req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		return t.Set(req.GetPath(), hostwire.ParseVolumeAttributes(req.GetAttributes()))
	})
	return &pb.SetVolumeFileResponse{Entry: e}, err
}

func (s *server) RenameVolumeFile(_ context.Context, req *pb.RenameVolumeFileRequest) (*pb.RenameVolumeFileResponse, error) {
	e, err := s.entryOf(req.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) { return t.Rename(req.GetPath(), req.GetNewPath()) })
	return &pb.RenameVolumeFileResponse{Entry: e}, err
}

func (s *server) RemoveVolumeFile(ctx context.Context, req *pb.VolumeFileRequest) (*pb.RemoveVolumeFileResponse, error) {
	files, release, err := s.files(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	return &pb.RemoveVolumeFileResponse{}, files.Remove(ctx, req.GetPath())
}

func (s *server) ReadVolumeFile(_ context.Context, req *pb.VolumeFileRequest, stream *connect.ServerStream[pb.ReadFileStreamResponse]) error {
	files, release, err := s.files(req.GetVolumeId())
	if err != nil {
		return err
	}
	defer release()
	file, err := files.Read(req.GetPath())
	if err != nil {
		return err
	}
	defer file.Close()
	return sendFile(stream, file, func(err error) error {
		return &wrenn.Error{Code: wrenn.Internal, Message: "the volume's file system failed", Err: err}
	})
}

func (s *server) WriteVolumeFile(_ context.Context, stream *connect.ClientStream[pb.WriteFileStreamRequest]) (*pb.WriteVolumeFileResponse, error) {
	if !stream.Receive() || stream.Msg().GetVolume() == nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "the first message must be volume")
	}
	meta := stream.Msg().GetVolume()
	content := &chunks{stream: stream}
	e, err := s.entryOf(meta.GetVolumeId(), func(t *tree.Tree) (*wrenn.VolumeEntry, error) {
		return t.Write(meta.GetPath(), hostwire.ParseVolumeWrite(meta), content)
	})
	if content.err != nil { // why the file was not written
		return nil, content.err
	}
	return &pb.WriteVolumeFileResponse{Entry: e}, err
}
