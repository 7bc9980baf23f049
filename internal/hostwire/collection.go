package hostwire

import (
	"time"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// StoreReferences is the answer with the keys that a host refers to.
func StoreReferences(refs wrenn.StoreReferences) *pb.ListStoreReferencesResponse {
	out := &pb.ListStoreReferencesResponse{Keys: refs.Keys}
	for _, id := range refs.Unknown {
		out.UnknownSandboxes = append(out.UnknownSandboxes, string(id))
	}
	return out
}

// ParseStoreReferences reads the answer of a host.
func ParseStoreReferences(msg *pb.ListStoreReferencesResponse) wrenn.StoreReferences {
	refs := wrenn.StoreReferences{Keys: msg.GetKeys()}
	for _, id := range msg.GetUnknownSandboxes() {
		refs.Unknown = append(refs.Unknown, wrenn.SandboxID(id))
	}
	return refs
}

// CollectRequest is the request to delete what nothing needs.
func CollectRequest(c wrenn.StoreCollection) *pb.CollectStoreRequest {
	return &pb.CollectStoreRequest{
		Team: string(c.Team), Records: c.Records, Lost: c.Lost, Others: c.Others, ThroughRound: c.Through, MinAgeSec: uint64(seconds(c.MinAge)), DryRun: c.DryRun,
	}
}

// ParseCollectRequest reads the request.
func ParseCollectRequest(msg *pb.CollectStoreRequest) wrenn.StoreCollection {
	return wrenn.StoreCollection{
		Team: wrenn.TeamID(msg.GetTeam()), Records: msg.GetRecords(), Lost: msg.GetLost(), Others: msg.GetOthers(), Through: msg.GetThroughRound(),
		MinAge: time.Duration(min(msg.GetMinAgeSec(), maxAgeSeconds)) * time.Second, DryRun: msg.GetDryRun(),
	}
}

// maxAgeSeconds bounds an age: a century.
const maxAgeSeconds = 100 * 365 * 24 * 3600

// CollectResponse is the answer with what was deleted.
func CollectResponse(c wrenn.StoreCollected) *pb.CollectStoreResponse {
	out := &pb.CollectStoreResponse{
		Objects: size(c.Objects), Bytes: size(c.Bytes), YoungObjects: size(c.YoungObjects), YoungBytes: size(c.YoungBytes), More: c.More,
	}
	for _, o := range c.Listed {
		out.Listed = append(out.Listed, &pb.StoreObject{Key: o.Key, Bytes: size(o.Bytes)})
	}
	return out
}

// ParseCollectResponse reads the answer.
func ParseCollectResponse(msg *pb.CollectStoreResponse) wrenn.StoreCollected {
	out := wrenn.StoreCollected{
		Objects: parseSize(msg.GetObjects()), Bytes: parseSize(msg.GetBytes()),
		YoungObjects: parseSize(msg.GetYoungObjects()), YoungBytes: parseSize(msg.GetYoungBytes()), More: msg.GetMore(),
	}
	for _, o := range msg.GetListed() {
		out.Listed = append(out.Listed, wrenn.StoreObject{Key: Text(o.GetKey()), Bytes: parseSize(o.GetBytes())})
	}
	return out
}
