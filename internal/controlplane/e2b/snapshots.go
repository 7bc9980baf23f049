package e2b

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// createSnapshot saves a sandbox as a template, whose name is the snapshot's id.
func (s *Server) createSnapshot(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.NewSnapshot
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if err := refuseBase(req.Name); err != nil {
		return 0, nil, err
	}
	t, err := s.service.SnapshotSandbox(r.Context(), c, sb.ID, req.Name, without(req.Memory))
	if err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, snapshotOf(t), nil
}

func snapshotOf(t *wrenn.Template) oapi.Snapshot {
	name := t.Name.String()
	return oapi.Snapshot{SnapshotID: name, Names: []string{name}}
}

func (s *Server) listSnapshots(r *http.Request, c service.Caller) (int, any, error) {
	query := r.URL.Query()
	req := service.ListSnapshots{Name: query.Get("name"), Limit: maxPage}
	if text := query.Get("limit"); text != "" {
		var err error
		if req.Limit, err = strconv.Atoi(text); err != nil || req.Limit < 1 || req.Limit > maxPage {
			return 0, nil, invalid("limit is 1 to %d", maxPage)
		}
	}
	after, err := base64.RawURLEncoding.DecodeString(query.Get("nextToken"))
	if err != nil {
		return 0, nil, invalid("nextToken is not that of a page")
	}
	req.After = string(after)
	if text := query.Get("sandboxID"); text != "" {
		short, _, _ := strings.Cut(text, "-")
		id, malformed := wrenn.ParseSandboxID(short)
		if malformed != nil {
			return http.StatusOK, []oapi.Snapshot{}, nil //nolint:nilerr // an id that no sandbox has
		}
		req.Sandbox = id
	}
	found, more, err := s.service.ListSnapshots(r.Context(), c, req)
	out := page{}
	entries := []oapi.Snapshot{}
	for i := range found {
		entries = append(entries, snapshotOf(&found[i]))
	}
	if more {
		out.next = base64.RawURLEncoding.EncodeToString([]byte(entries[len(entries)-1].SnapshotID))
	}
	out.entries = entries
	return http.StatusOK, out, err
}
