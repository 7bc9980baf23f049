// Package hostwire translates between the product's words and the messages of
// hostagent.v1, in both directions: X returns the message for a word, ParseX the
// word in a message. The host agent and the control plane's client of it both
// use it, so that a field is written and read in one place.
//
// ParseX of a request returns an Invalid error for what no host can mean. ParseX
// of an answer never fails: what a newer host sends is left out or unknown, and
// its texts, which may come from a guest, are cleaned and cut. Messages that hold
// nothing but ids and paths have no word and no translation.
package hostwire

import (
	"math"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/plain"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// HostInfo is the answer to a ping.
func HostInfo(info wrenn.HostInfo) *pb.PingResponse {
	c := info.Capacity
	return &pb.PingResponse{
		Version: info.Version, Instance: info.Instance, Driver: info.Driver, HasStore: info.HasStore, TemplatesRevision: info.TemplatesRevision,
		KnowsStoreRounds: info.StoreRounds.Known, StoreRound: info.StoreRounds.Current, OldestStoreRound: info.StoreRounds.Oldest,
		Zone: info.Zone, Labels: info.Labels,
		Platform: &pb.Platform{Driver: info.Platform.Driver, Version: info.Platform.Version, Processor: info.Platform.Processor},
		Capacity: &pb.Capacity{
			Sandboxes: number(c.Sandboxes), SandboxesUsed: number(c.SandboxesUsed),
			MemoryMb: size(c.MemoryMiB), MemoryMbUsed: size(c.MemoryMiBUsed),
			DiskMb: size(c.DiskMiB), DiskMbFree: size(c.DiskMiBFree),
			DisksMb: size(c.DisksMiB), DisksMbUsed: size(c.DisksMiBUsed),
		},
	}
}

// ParseHostInfo reads the answer to a ping.
func ParseHostInfo(msg *pb.PingResponse) wrenn.HostInfo {
	c := msg.GetCapacity()
	return wrenn.HostInfo{
		Version: Text(msg.GetVersion()), Instance: Text(msg.GetInstance()), Driver: Text(msg.GetDriver()), HasStore: msg.GetHasStore(), TemplatesRevision: msg.GetTemplatesRevision(),
		StoreRounds: wrenn.StoreRounds{Known: msg.GetKnowsStoreRounds(), Current: msg.GetStoreRound(), Oldest: min(msg.GetOldestStoreRound(), msg.GetStoreRound())},
		HostFacts:   parseHostFacts(msg),
		Capacity: wrenn.Capacity{
			Sandboxes: int(c.GetSandboxes()), SandboxesUsed: int(c.GetSandboxesUsed()),
			MemoryMiB: parseSize(c.GetMemoryMb()), MemoryMiBUsed: parseSize(c.GetMemoryMbUsed()),
			DiskMiB: parseSize(c.GetDiskMb()), DiskMiBFree: parseSize(c.GetDiskMbFree()),
			DisksMiB: parseSize(c.GetDisksMb()), DisksMiBUsed: parseSize(c.GetDisksMbUsed()),
		},
	}
}

// parseHostFacts does not check the zone and the labels.
func parseHostFacts(msg *pb.PingResponse) wrenn.HostFacts {
	p := msg.GetPlatform()
	facts := wrenn.HostFacts{
		Zone:     Text(msg.GetZone()),
		Platform: wrenn.Platform{Driver: Text(p.GetDriver()), Version: Text(p.GetVersion()), Processor: Text(p.GetProcessor())},
	}
	if len(msg.GetLabels()) > 0 {
		facts.Labels = map[string]string{}
	}
	for name, value := range msg.GetLabels() {
		facts.Labels[Text(name)] = Text(value)
	}
	return facts
}

// maxText bounds a text of a host, in bytes.
const maxText = 1 << 10

// Text makes a text of a host fit for a database and a terminal.
func Text(s string) string {
	return plain.Cut(plain.Text(plain.Cut(s, maxText)), maxText) // Text may make it longer
}

// number is a count that is never negative.
func number(n int) uint32 { return uint32(max(0, min(int64(n), math.MaxUint32))) }

func size(n int64) uint64 { return uint64(max(0, n)) }

func parseSize(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// seconds rounds up, so that a timeout is never shorter than it was set, and one
// that is almost over does not read as none.
func seconds(d time.Duration) uint32 {
	return uint32(max(0, min((d+time.Second-1)/time.Second, math.MaxInt32)))
}

func parseSeconds(n uint32) time.Duration { return time.Duration(n) * time.Second }
