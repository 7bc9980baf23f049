package hostwire

import (
	"time"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// MetricsRequest asks for samples of a sandbox. A zero time is no bound.
func MetricsRequest(id wrenn.SandboxID, from, to time.Time) *pb.ReadMetricsRequest {
	return &pb.ReadMetricsRequest{SandboxId: string(id), FromUnix: unix(from), ToUnix: unix(to)}
}

// ParseMetricsRequest reads which samples are wanted.
func ParseMetricsRequest(msg *pb.ReadMetricsRequest) (id wrenn.SandboxID, from, to time.Time, err error) {
	id, err = wrenn.ParseSandboxID(msg.GetSandboxId())
	return id, parseUnix(msg.GetFromUnix()), parseUnix(msg.GetToUnix()), err
}

// unix returns the seconds of a time; 0 for none.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func parseUnix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// Metrics are samples of a sandbox.
func Metrics(samples []wrenn.MetricsSample) *pb.ReadMetricsResponse {
	msg := &pb.ReadMetricsResponse{}
	for i := range samples {
		s := &samples[i]
		msg.Samples = append(msg.Samples, &pb.MetricsSample{
			AtUnix: s.At.Unix(), Cpus: number(s.CPUs), CpuPercent: s.CPUPercent,
			MemoryUsed: size(s.MemoryUsed), MemoryTotal: size(s.MemoryTotal), MemoryCache: size(s.MemoryCache),
			DiskUsed: size(s.DiskUsed), DiskTotal: size(s.DiskTotal),
		})
	}
	return msg
}

// ParseMetrics reads samples of a sandbox.
func ParseMetrics(msg *pb.ReadMetricsResponse) []wrenn.MetricsSample {
	var samples []wrenn.MetricsSample
	for _, s := range msg.GetSamples() {
		samples = append(samples, wrenn.MetricsSample{
			At: time.Unix(s.GetAtUnix(), 0).UTC(), CPUs: int(s.GetCpus()), CPUPercent: s.GetCpuPercent(),
			MemoryUsed: parseSize(s.GetMemoryUsed()), MemoryTotal: parseSize(s.GetMemoryTotal()), MemoryCache: parseSize(s.GetMemoryCache()),
			DiskUsed: parseSize(s.GetDiskUsed()), DiskTotal: parseSize(s.GetDiskTotal()),
		})
	}
	return samples
}
