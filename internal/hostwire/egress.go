package hostwire

import (
	"math"
	"net/netip"
	"time"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// EgressRequest asks for the events of a sandbox after a known one. Wait is how long
// to wait for one, in whole seconds.
func EgressRequest(id wrenn.SandboxID, after uint64, wait time.Duration) *pb.ReadEgressRequest {
	return &pb.ReadEgressRequest{SandboxId: string(id), After: after, WaitSeconds: uint32(wait / time.Second)}
}

// ParseEgressRequest reads which events are wanted.
func ParseEgressRequest(msg *pb.ReadEgressRequest) (id wrenn.SandboxID, after uint64, wait time.Duration, err error) {
	id, err = wrenn.ParseSandboxID(msg.GetSandboxId())
	return id, msg.GetAfter(), time.Duration(msg.GetWaitSeconds()) * time.Second, err
}

// Egress is a part of a sandbox's egress log.
func Egress(log wrenn.EgressLog) *pb.ReadEgressResponse {
	msg := &pb.ReadEgressResponse{Dropped: log.Dropped}
	for i := range log.Events {
		e := &log.Events[i]
		msg.Events = append(msg.Events, &pb.EgressEvent{
			Seq: e.Seq, AtUnixMicro: e.At.UnixMicro(), Protocol: string(e.Protocol), Verdict: string(e.Verdict),
			Name: e.Name, Address: addressText(e.Address), Port: uint32(e.Port), Reason: e.Reason, Via: e.Via,
			Sent: size(e.Sent), Received: size(e.Received), TookMillis: e.Took.Milliseconds(),
		})
	}
	return msg
}

// ParseEgress reads a part of a sandbox's egress log.
func ParseEgress(msg *pb.ReadEgressResponse) wrenn.EgressLog {
	log := wrenn.EgressLog{Dropped: msg.GetDropped()}
	for _, e := range msg.GetEvents() {
		log.Events = append(log.Events, wrenn.EgressEvent{
			Seq: e.GetSeq(), At: time.UnixMicro(e.GetAtUnixMicro()).UTC(),
			Protocol: wrenn.EgressProtocol(e.GetProtocol()), Verdict: wrenn.EgressVerdict(e.GetVerdict()),
			Name: e.GetName(), Address: parseAddress(e.GetAddress()), Port: port(e.GetPort()), Reason: e.GetReason(), Via: e.GetVia(),
			Sent: parseSize(e.GetSent()), Received: parseSize(e.GetReceived()), Took: time.Duration(e.GetTookMillis()) * time.Millisecond,
		})
	}
	return log
}

// ExplainRequest asks whether a sandbox may reach a host at a port; 0 is any.
func ExplainRequest(id wrenn.SandboxID, host string, port uint16) *pb.ExplainEgressRequest {
	return &pb.ExplainEgressRequest{SandboxId: string(id), Host: host, Port: uint32(port)}
}

// ParseExplainRequest reads what is to be explained.
func ParseExplainRequest(msg *pb.ExplainEgressRequest) (id wrenn.SandboxID, host string, to uint16, err error) {
	id, err = wrenn.ParseSandboxID(msg.GetSandboxId())
	return id, msg.GetHost(), port(msg.GetPort()), err
}

// Explanation says why a sandbox may or may not reach somewhere.
func Explanation(e wrenn.EgressExplanation) *pb.ExplainEgressResponse {
	msg := &pb.ExplainEgressResponse{Allowed: e.Allowed, Rule: e.Rule, Layer: string(e.Layer), Reason: e.Reason}
	for _, a := range e.Addresses {
		msg.Addresses = append(msg.Addresses, &pb.EgressAddress{Address: addressText(a.Address), Allowed: a.Allowed, Rule: a.Rule, Layer: string(a.Layer)})
	}
	return msg
}

// ParseExplanation reads why a sandbox may or may not reach somewhere.
func ParseExplanation(msg *pb.ExplainEgressResponse) wrenn.EgressExplanation {
	e := wrenn.EgressExplanation{Allowed: msg.GetAllowed(), Rule: msg.GetRule(), Layer: wrenn.NetworkLayer(msg.GetLayer()), Reason: msg.GetReason()}
	for _, a := range msg.GetAddresses() {
		e.Addresses = append(e.Addresses, wrenn.EgressAddress{Address: parseAddress(a.GetAddress()), Allowed: a.GetAllowed(), Rule: a.GetRule(), Layer: wrenn.NetworkLayer(a.GetLayer())})
	}
	return e
}

// addressText returns an address as text; "" for none.
func addressText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// parseAddress returns the address in a text; the zero value for none.
func parseAddress(text string) netip.Addr {
	addr, _ := netip.ParseAddr(text) // a peer that sends another text has none
	return addr
}

// port returns a port; 0 for a number that is none.
func port(n uint32) uint16 {
	if n > math.MaxUint16 {
		return 0
	}
	return uint16(n)
}
