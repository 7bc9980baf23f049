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

	pb "wrenn.dev/proto/gen/envd/filesystem"
)

const (
	keepalive       = 90 * time.Second // of silence, the protocol's default
	keepaliveHeader = "Keepalive-Ping-Interval"
)

// errQuiet means that no event came for as long as a stream may be silent.
var errQuiet = errors.New("no events")

// watchRequest is what WatchDir and CreateWatcher ask for.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// openWatch starts the watch that a request describes. The caller must end it.
func (s *Service) openWatch(ctx context.Context, req watchRequest) (*watch, error) {
	user, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	w, err := as(user, func() (*watch, error) {
		return newWatch(watchSpec{
			user: user, root: path, recursive: req.GetRecursive(), entries: req.GetIncludeEntry(),
			networks: req.GetAllowNetworkMounts(), accounts: s.accounts,
		})
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

// WatchDir sends a start event, then the changes in a directory, until the client
// leaves or the directory is removed.
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

// silenceFrom returns the longest silence that a client asks for.
func silenceFrom(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get(keepaliveHeader), 10, 16)
	if err != nil || seconds == 0 {
		return keepalive
	}
	return time.Duration(seconds) * time.Second
}

// CreateWatcher starts a watch whose events are kept for polling. It lasts until it
// is removed, or was not polled for long when another watch needs its place.
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

// GetWatcherEvents returns the events since the last call. After a loss of events
// it returns those before the loss, then once an error.
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
