package filesystem

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	pb "wrenn/proto/gen/envd/filesystem"
)

const (
	keepalive       = 90 * time.Second // of silence, unless the client wishes otherwise; the protocol's
	keepaliveHeader = "Keepalive-Ping-Interval"
)

// errQuiet says that nothing happened for as long as a stream may be silent.
var errQuiet = errors.New("no events")

// watchRequest is what WatchDir and CreateWatcher ask for.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// openWatch starts the watch that a request describes; end it by endWatch.
func (s *Service) openWatch(ctx context.Context, req watchRequest) (*watch, error) {
	_, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	w, err := newWatch(watchSpec{
		root: path, recursive: req.GetRecursive(), entries: req.GetIncludeEntry(),
		networks: req.GetAllowNetworkMounts(), accounts: s.accounts,
	})
	if err != nil {
		return nil, err
	}
	if err := s.watches.admit(w, time.Now()); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// WatchDir sends a start event, then what changes in a directory, until the
// client goes away or the directory does.
func (s *Service) WatchDir(ctx context.Context, req *pb.WatchDirRequest, stream *connect.ServerStream[pb.WatchDirResponse]) error {
	w, err := s.openWatch(ctx, req)
	if err != nil {
		return s.rpcError(ctx, err)
	}
	defer s.watches.end(w)
	if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	silence := silenceFrom(rpcHeader(ctx))
	for {
		events, err := nextWithin(ctx, w, silence)
		switch {
		case errors.Is(err, errQuiet):
			err = stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}})
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, fs.ErrClosed):
			err = errStopping
		case err == nil:
			err = sendEvents(stream, events)
		}
		if err != nil {
			return s.rpcError(ctx, err)
		}
	}
}

func sendEvents(stream *connect.ServerStream[pb.WatchDirResponse], events []*pb.FilesystemEvent) error {
	for _, event := range events {
		if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: event}}); err != nil {
			return err
		}
	}
	return nil
}

// nextWithin is w.next, and errQuiet when that takes longer than silence.
func nextWithin(ctx context.Context, w *watch, silence time.Duration) ([]*pb.FilesystemEvent, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, silence, errQuiet)
	defer cancel()
	return w.next(ctx)
}

// silenceFrom reads how many seconds of silence a client's connection bears.
func silenceFrom(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get(keepaliveHeader), 10, 16)
	if err != nil || seconds == 0 {
		return keepalive
	}
	return time.Duration(seconds) * time.Second
}

// CreateWatcher starts a watch whose events wait to be fetched. It lasts until
// it is removed, or forgotten and others need the room.
func (s *Service) CreateWatcher(ctx context.Context, req *pb.CreateWatcherRequest) (*pb.CreateWatcherResponse, error) {
	w, err := s.openWatch(ctx, req)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	id, err := s.watches.poll(w, time.Now())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.CreateWatcherResponse{WatcherId: id}, nil
}

// GetWatcherEvents returns what happened since it was asked last. After a loss
// of events it returns those before it, then once an error.
func (s *Service) GetWatcherEvents(ctx context.Context, req *pb.GetWatcherEventsRequest) (*pb.GetWatcherEventsResponse, error) {
	p, err := s.watches.poller(req.GetWatcherId())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	events, err := p.fetch(time.Now())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.GetWatcherEventsResponse{Events: events}, nil
}

// RemoveWatcher ends a watch that CreateWatcher started.
func (s *Service) RemoveWatcher(ctx context.Context, req *pb.RemoveWatcherRequest) (*pb.RemoveWatcherResponse, error) {
	p, err := s.watches.poller(req.GetWatcherId())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	s.watches.end(p.watch)
	return &pb.RemoveWatcherResponse{}, nil
}
