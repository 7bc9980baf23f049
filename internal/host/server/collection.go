package server

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// ListStoreReferences returns the keys that this host refers to.
func (s *server) ListStoreReferences(_ context.Context, req *pb.ListStoreReferencesRequest) (*pb.ListStoreReferencesResponse, error) {
	return hostwire.StoreReferences(s.cfg.Manager.StoreReferences(wrenn.TeamID(req.GetTeam()))), nil
}

// CollectStore deletes what nothing needs.
func (s *server) CollectStore(ctx context.Context, req *pb.CollectStoreRequest) (*pb.CollectStoreResponse, error) {
	done, err := s.cfg.Manager.CollectStore(ctx, hostwire.ParseCollectRequest(req))
	if err != nil {
		return nil, err
	}
	return hostwire.CollectResponse(done), nil
}
