package e2b

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn"
	"wrenn/internal/controlplane/service"
)

// maxPage bounds a page of a list, as E2B does.
const maxPage = 100

// create returns the operation for one of the two dialects, which differ by the default timeout.
func (s *Server) create(timeout time.Duration) operation {
	return func(r *http.Request, c service.Caller) (int, any, error) {
		var req newSandbox
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		if req.TemplateID == "" {
			return 0, nil, &failure{http.StatusBadRequest, "templateID is needed"}
		}
		if err := req.refuseUnbuilt(); err != nil {
			return 0, nil, err
		}
		d, err := seconds(req.Timeout, timeout)
		if err != nil {
			return 0, nil, err
		}
		want := service.CreateSandbox{Metadata: req.Metadata, SandboxSpec: wrenn.SandboxSpec{
			Template: req.TemplateID, EndOfLife: wrenn.EndOfLife{Timeout: d, OnTimeout: wrenn.DestroyOnTimeout},
			AutoResume: req.AutoResume.Enabled, Env: req.EnvVars,
		}}
		if req.AutoPause {
			want.OnTimeout = wrenn.PauseOnTimeout
		}
		sb, err := s.service.CreateSandbox(r.Context(), c, want)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			return 0, nil, &failure{http.StatusNotFound, fmt.Sprintf("template '%.100s' not found", req.TemplateID)}
		}
		return s.created(r.Context(), http.StatusCreated, sb, err)
	}
}

// created is the answer with a sandbox that the caller may use now.
func (s *Server) created(ctx context.Context, status int, sb *wrenn.Sandbox, err error) (int, any, error) {
	if err != nil {
		return 0, nil, err
	}
	token, err := s.service.AccessToken(ctx, sb.ID)
	return status, sandboxOf(sb, token), err
}

func sandboxOf(sb *wrenn.Sandbox, token string) sandbox {
	return sandbox{TemplateID: sb.Template, SandboxID: string(sb.ID), ClientID: clientID, Alias: sb.Template, EnvdVersion: envdVersion, Token: token}
}

// seconds reads a timeout; 0 ends a sandbox at once, as nearly as can be said.
func seconds(given *int64, otherwise time.Duration) (time.Duration, error) {
	if given == nil {
		return otherwise, nil
	}
	if *given < 0 || *given > math.MaxInt32 {
		return 0, &failure{http.StatusBadRequest, "timeout is a number of seconds, 0 or more"}
	}
	return max(time.Duration(*given)*time.Second, time.Second), nil
}

// id reads the sandbox's id from the path. Older clients add that of a client.
func id(r *http.Request) (wrenn.SandboxID, error) {
	short, _, _ := strings.Cut(chi.URLParam(r, "id"), "-")
	parsed, err := wrenn.ParseSandboxID(short)
	if err != nil { // no sandbox has such an id
		return "", notFound(short)
	}
	return parsed, nil
}

func notFound[T ~string](id T) error {
	return &failure{http.StatusNotFound, fmt.Sprintf("sandbox \"%.64s\" not found", id)}
}

// find returns a sandbox that clients can see.
func (s *Server) find(r *http.Request, c service.Caller) (*wrenn.Sandbox, error) {
	id, err := id(r)
	if err != nil {
		return nil, err
	}
	sb, err := s.service.Sandbox(r.Context(), c, id)
	if wrenn.CodeOf(err) == wrenn.NotFound || err == nil && !lives(sb) {
		return nil, notFound(id)
	}
	return sb, err
}

func (s *Server) get(r *http.Request, c service.Caller) (int, any, error) {
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	token, err := s.service.AccessToken(r.Context(), sb.ID)
	onTimeout := "kill"
	if sb.OnTimeout == wrenn.PauseOnTimeout {
		onTimeout = "pause"
	}
	return http.StatusOK, detail{listed: listedOf(sb), Token: token, Lifecycle: lifecycle{AutoResume: sb.AutoResume, OnTimeout: onTimeout}}, err
}

func (s *Server) kill(r *http.Request, c service.Caller) (int, any, error) {
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.DeleteSandbox(r.Context(), c, sb.ID)
}

func (s *Server) setTimeout(r *http.Request, c service.Caller) (int, any, error) {
	var req struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	if req.Timeout == nil {
		return 0, nil, &failure{http.StatusBadRequest, "timeout is needed"}
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	d, err := seconds(req.Timeout, 0)
	if err == nil {
		_, err = s.service.SetTimeout(r.Context(), c, sb.ID, d)
	}
	return http.StatusNoContent, nil, err
}

// refresh is an old form of extending a sandbox's life.
func (s *Server) refresh(r *http.Request, c service.Caller) (int, any, error) {
	var req struct {
		Duration *int64 `json:"duration"`
	}
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	d, err := seconds(req.Duration, v1Timeout)
	if err == nil {
		_, err = s.extend(r.Context(), c, sb, d)
	}
	return http.StatusNoContent, nil, err
}

// extend has the sandbox live at least d from now, never shorter than before.
func (s *Server) extend(ctx context.Context, c service.Caller, sb *wrenn.Sandbox, d time.Duration) (*wrenn.Sandbox, error) {
	if sb.Timeout == 0 || endOf(sb).After(time.Now().Add(d)) {
		return sb, nil
	}
	return s.service.SetTimeout(ctx, c, sb.ID, d)
}

// connect resumes a paused sandbox, 201, and extends the life of one that runs, 200.
func (s *Server) connect(r *http.Request, c service.Caller) (int, any, error) {
	var req struct {
		Timeout *int64 `json:"timeout"`
		Memory  *bool  `json:"memory"`
	}
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	d, err := seconds(req.Timeout, v2Timeout)
	if err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	if sb.State != wrenn.Running {
		if req.Memory != nil && !*req.Memory {
			return 0, nil, &failure{http.StatusBadRequest, "memory: false, a boot from the disk, is not built yet"}
		}
		status = http.StatusCreated
		if sb, err = s.service.ResumeSandbox(r.Context(), c, sb.ID); err != nil {
			return 0, nil, err
		}
	}
	sb, err = s.extend(r.Context(), c, sb, d)
	return s.created(r.Context(), status, sb, err)
}

// resume is the old form of connect for a paused sandbox.
func (s *Server) resume(r *http.Request, c service.Caller) (int, any, error) {
	var req struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if sb.State == wrenn.Running {
		return 0, nil, &failure{http.StatusConflict, "the sandbox runs already"}
	}
	d, err := seconds(req.Timeout, v1Timeout)
	if err == nil {
		sb, err = s.service.ResumeSandbox(r.Context(), c, sb.ID)
	}
	if err == nil {
		sb, err = s.service.SetTimeout(r.Context(), c, sb.ID, d)
	}
	return s.created(r.Context(), http.StatusCreated, sb, err)
}

// pause answers 409 for a sandbox that is paused; clients take that as "it was".
func (s *Server) pause(r *http.Request, c service.Caller) (int, any, error) {
	var req struct {
		Memory *bool `json:"memory"`
	}
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	if req.Memory != nil && !*req.Memory {
		return 0, nil, &failure{http.StatusBadRequest, "memory: false, a pause that keeps the disk only, is not built yet"}
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if sb.State == wrenn.Paused || sb.State == wrenn.Pausing {
		return 0, nil, &failure{http.StatusConflict, "the sandbox is paused already"}
	}
	_, err = s.service.PauseSandbox(r.Context(), c, sb.ID)
	return http.StatusNoContent, nil, err
}

// forked is the result of one copy: a sandbox or an error.
type forked struct {
	Sandbox *sandbox `json:"sandbox,omitempty"`
	Error   *failure `json:"error,omitempty"`
}

func (s *Server) fork(r *http.Request, c service.Caller) (int, any, error) {
	req := struct {
		Timeout *int64 `json:"timeout"`
		Count   int    `json:"count"`
	}{Count: 1}
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	d, err := seconds(req.Timeout, v2Timeout)
	if err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if sb.State == wrenn.Paused {
		return 0, nil, &failure{http.StatusConflict, "the sandbox is paused: connect to it first"}
	}
	copies, err := s.service.ForkSandbox(r.Context(), c, sb.ID, service.ForkSandbox{Count: req.Count})
	if err != nil {
		return 0, nil, err
	}
	out := []forked{}
	for i := range copies.Sandboxes {
		out = append(out, s.forkedOne(r.Context(), c, &copies.Sandboxes[i], d))
	}
	for _, f := range copies.Failed {
		out = append(out, forked{Error: &failure{statuses[wrenn.CodeOf(f.Err)], f.Err.Error()}})
	}
	return http.StatusCreated, out, nil
}

// forkedOne gives a copy its timeout.
func (s *Server) forkedOne(ctx context.Context, c service.Caller, sb *wrenn.Sandbox, timeout time.Duration) forked {
	sb, err := s.service.SetTimeout(ctx, c, sb.ID, timeout)
	var token string
	if err == nil {
		token, err = s.service.AccessToken(ctx, sb.ID)
	}
	if err != nil {
		return forked{Error: &failure{statuses[wrenn.CodeOf(err)], err.Error()}}
	}
	made := sandboxOf(sb, token)
	return forked{Sandbox: &made}
}

// listRunning is the old list: those that run, on one page.
func (s *Server) listRunning(r *http.Request, c service.Caller) (int, any, error) {
	metadata, err := metadataFilter(r.URL.Query().Get("metadata"))
	if err != nil {
		return 0, nil, err
	}
	out := []listed{}
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
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	var next string
	s.handle(func(r *http.Request, c service.Caller) (int, any, error) {
		req, err := listRequest(r.URL.Query())
		if err != nil {
			return 0, nil, err
		}
		found, page, err := s.service.ListSandboxes(r.Context(), c, req)
		out := []listed{}
		for i := range found {
			out = append(out, listedOf(&found[i]))
		}
		if next = page; next != "" {
			w.Header().Set("X-Next-Token", next)
		}
		return http.StatusOK, out, err
	})(w, r)
}

// statesOf are the states behind one that clients know.
var statesOf = map[string][]wrenn.State{
	stateRunning: {wrenn.Pending, wrenn.Starting, wrenn.Running, wrenn.Resuming},
	statePaused:  {wrenn.Pausing, wrenn.Paused},
}

func listRequest(query url.Values) (service.ListSandboxes, error) {
	metadata, err := metadataFilter(query.Get("metadata"))
	if err != nil {
		return service.ListSandboxes{}, err
	}
	req := service.ListSandboxes{Metadata: metadata, Page: query.Get("nextToken"), Limit: maxPage}
	for _, unbuilt := range []string{"template", "startedAfter"} {
		if query.Get(unbuilt) != "" {
			return req, &failure{http.StatusBadRequest, unbuilt + " of a list is not built yet"}
		}
	}
	if order := query.Get("order"); order != "" && order != "desc" {
		return req, &failure{http.StatusBadRequest, "a list has the order desc; others are not built yet"}
	}
	if text := query.Get("limit"); text != "" {
		if req.Limit, err = strconv.Atoi(text); err != nil || req.Limit < 1 || req.Limit > maxPage {
			return req, &failure{http.StatusBadRequest, "limit is 1 to 100"}
		}
	}
	wanted := strings.Split(query.Get("state"), ",")
	if query.Get("state") == "" {
		wanted = []string{stateRunning, statePaused}
	}
	for _, name := range wanted {
		states, ok := statesOf[name]
		if !ok {
			return req, &failure{http.StatusBadRequest, "state is running, paused, or both with a comma between"}
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
	invalid := &failure{http.StatusBadRequest, "metadata is a query string of keys and values, escaped once more"}
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
