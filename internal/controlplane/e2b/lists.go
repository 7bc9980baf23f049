package e2b

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// maxPage bounds a page of a list, as E2B does.
const maxPage = 100

// maxAll bounds a list that has no pages, as E2B does.
const maxAll = 5000

// listRunning is the old list: those that run, on one page.
func (s *Server) listRunning(r *http.Request, c service.Caller) (int, any, error) {
	metadata, err := metadataFilter(r.URL.Query().Get("metadata"))
	if err != nil {
		return 0, nil, err
	}
	out := []oapi.ListedSandbox{}
	for page := ""; ; {
		found, next, err := s.service.ListSandboxes(r.Context(), c, service.ListSandboxes{States: []wrenn.State{wrenn.Running}, Metadata: metadata, Page: page})
		if err != nil {
			return 0, nil, err
		}
		for i := range found {
			out = append(out, listedOf(&found[i]))
		}
		if page = next; next == "" {
			return http.StatusOK, out, nil
		}
		if len(out) >= maxAll {
			return 0, nil, invalid("there are more than %d sandboxes: use GET /v2/sandboxes, which has pages", maxAll)
		}
	}
}

// list answers a page.
func (s *Server) list(r *http.Request, c service.Caller) (int, any, error) {
	req, err := listRequest(r.URL.Query())
	if err != nil {
		return 0, nil, err
	}
	found, next, err := s.service.ListSandboxes(r.Context(), c, req)
	out := []oapi.ListedSandbox{}
	for i := range found {
		out = append(out, listedOf(&found[i]))
	}
	answer := page{entries: out, next: next}
	if err == nil && slices.Contains(req.States, wrenn.Running) {
		req.States = statesOf[oapi.Running]
		var running int
		running, err = s.service.CountSandboxes(r.Context(), c, req)
		answer.running = &running
	}
	return http.StatusOK, answer, err
}

// statesOf are the states behind one that clients know.
var statesOf = map[oapi.SandboxState][]wrenn.State{
	oapi.Running: {wrenn.Pending, wrenn.Starting, wrenn.Running, wrenn.Resuming},
	oapi.Paused:  {wrenn.Pausing, wrenn.Paused},
}

func listRequest(query url.Values) (service.ListSandboxes, error) {
	metadata, err := metadataFilter(query.Get("metadata"))
	if err != nil {
		return service.ListSandboxes{}, err
	}
	req := service.ListSandboxes{Metadata: metadata, Page: query.Get("nextToken"), Limit: maxPage}
	req.Template, req.OldestFirst = query.Get("template"), query.Get("order") == "asc"
	if text := query.Get("startedAfter"); text != "" {
		after, err := time.Parse(time.RFC3339, text)
		if err != nil || after.Year() > 9999 {
			return req, invalid("startedAfter is a time as 2026-01-02T15:04:05Z")
		}
		req.StartedAfter = after.Truncate(time.Microsecond)
	}
	if text := query.Get("limit"); text != "" {
		if req.Limit, err = strconv.Atoi(text); err != nil || req.Limit < 1 || req.Limit > maxPage {
			return req, invalid("limit is 1 to 100")
		}
	}
	wanted := strings.Split(strings.Join(query["state"], ","), ",")
	if query.Get("state") == "" {
		wanted = []string{string(oapi.Running), string(oapi.Paused)}
	}
	for _, name := range wanted {
		states, ok := statesOf[oapi.SandboxState(name)]
		if !ok {
			return req, invalid("state is running, paused, or both with a comma between")
		}
		req.States = append(req.States, states...)
	}
	req.States = slices.Compact(slices.Sorted(slices.Values(req.States)))
	return req, nil
}

// metadataFilter reads a filter by metadata: a query string within the query,
// whose keys and values clients have escaped once more.
func metadataFilter(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	invalid := invalid("metadata is a query string of keys and values, escaped once more")
	inner, err := url.QueryUnescape(text)
	if err != nil {
		return nil, invalid
	}
	out := map[string]string{}
	for pair := range strings.SplitSeq(inner, "&") {
		name, value, found := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(name)
		value, errValue := url.QueryUnescape(value)
		if !found || errName != nil || errValue != nil {
			return nil, invalid
		}
		out[name] = value
	}
	return out, nil
}
