package e2b

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"wrenn"
	"wrenn/internal/controlplane/e2b/internal/oapi"
	"wrenn/internal/controlplane/service"
)

// maxPage bounds a page of a list, as E2B does.
const maxPage = 100

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
	}
}

// list answers a page, newest first.
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
	return http.StatusOK, page{entries: out, next: next}, err
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
	for _, unbuilt := range []string{"template", "startedAfter"} {
		if query.Get(unbuilt) != "" {
			return req, &failure{Status: http.StatusBadRequest, Message: unbuilt + " of a list is not built yet"}
		}
	}
	if order := query.Get("order"); order != "" && order != "desc" {
		return req, invalid("a list has the order desc; others are not built yet")
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
