package e2b

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (s *Server) metrics(r *http.Request, c service.Caller) (int, any, error) {
	query := r.URL.Query()
	from, err := unixTime(query.Get("start"))
	if err != nil {
		return 0, nil, err
	}
	to, err := unixTime(query.Get("end"))
	if err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	samples, err := s.service.SandboxMetrics(r.Context(), c, sb.ID, from, to)
	out := []oapi.SandboxMetric{}
	for i := range samples {
		out = append(out, metricOf(&samples[i]))
	}
	return http.StatusOK, out, err
}

// unixTime reads Unix seconds; zero for none.
func unixTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, invalid("start and end are Unix seconds")
	}
	return time.Unix(seconds, 0), nil
}

func metricOf(m *wrenn.MetricsSample) oapi.SandboxMetric {
	return oapi.SandboxMetric{
		Timestamp: m.At, TimestampUnix: m.At.Unix(), CPUCount: m.CPUs, CPUUsedPct: m.CPUPercent,
		MemUsed: m.MemoryUsed, MemTotal: m.MemoryTotal, MemCache: m.MemoryCache, DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal,
	}
}

// lastMetrics answers with the newest sample of each of several sandboxes.
func (s *Server) lastMetrics(r *http.Request, c service.Caller) (int, any, error) {
	wanted := r.URL.Query().Get("sandbox_ids")
	if wanted == "" {
		return 0, nil, invalid("sandbox_ids is needed: ids with commas between")
	}
	var ids []wrenn.SandboxID
	asked := map[wrenn.SandboxID]string{} // as the client wrote them
	for text := range strings.SplitSeq(wanted, ",") {
		short, _, _ := strings.Cut(text, "-")
		if id, err := wrenn.ParseSandboxID(short); err == nil && asked[id] == "" {
			ids, asked[id] = append(ids, id), text
		}
	}
	samples, err := s.service.LastMetrics(r.Context(), c, ids)
	out := oapi.SandboxesMetrics{Sandboxes: map[string]oapi.SandboxMetric{}}
	for id, sample := range samples {
		out.Sandboxes[asked[id]] = metricOf(&sample)
	}
	return http.StatusOK, out, err
}
