package api

import (
	"context"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/buildinfo"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// handlers implement the operations of the contract for the generated server. The
// request has been validated before.
type handlers struct{ s *Server }

var _ oapi.StrictServerInterface = (*handlers)(nil)

// never is the timeout of a sandbox that does not end by itself, as the service expects it.
const never = -time.Second

// timeout converts a timeout_sec of a sandbox to a timeout of the service: 0 is never.
func timeout(seconds int64) time.Duration {
	if seconds == 0 {
		return never
	}
	return time.Duration(seconds) * time.Second
}

// value returns *p, or the zero value if p is nil.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func (h *handlers) CreateSandbox(ctx context.Context, req oapi.CreateSandboxRequestObject) (oapi.CreateSandboxResponseObject, error) {
	body := value(req.Body)
	create := service.CreateSandbox{
		Metadata: value(body.Metadata), Requires: value(body.Requires), OnHostLoss: wrenn.OnHostLoss(value(body.OnHostLoss)),
		SandboxSpec: wrenn.SandboxSpec{
			Template: value(body.Template), Size: wrenn.Size{VCPUs: value(body.Vcpus), MemoryMiB: value(body.MemoryMb)}, DiskMiB: value(body.DiskMb),
			EndOfLife:  wrenn.EndOfLife{OnTimeout: wrenn.OnTimeout(value(body.OnTimeout))},
			AutoResume: value(body.AutoResume), Env: value(body.Env), Volumes: parseMounts(value(body.Volumes)),
			CheckpointEvery: time.Duration(value(body.CheckpointEverySec)) * time.Second,
		},
	}
	if body.TimeoutSec != nil {
		create.Timeout = timeout(*body.TimeoutSec)
	}
	if body.Network != nil {
		var err error
		if create.Network, err = parsePolicy(*body.Network); err != nil {
			return nil, err
		}
	}
	if body.Ports != nil {
		create.Ingress = parseIngress(*body.Ports)
	}
	// Without a time limit: the sandbox may wait for its turn on the host as long as the client waits.
	sb, err := h.s.service.CreateSandbox(ctx, callerOf(ctx), create)
	if err != nil {
		return nil, err
	}
	answer, err := h.sandboxWithPorts(ctx, sb)
	if err != nil {
		return nil, err
	}
	return oapi.CreateSandbox201JSONResponse{
		Body:    answer,
		Headers: oapi.CreateSandbox201ResponseHeaders{Location: new("/v1/sandboxes/" + string(sb.ID))},
	}, nil
}

func (h *handlers) ListSandboxes(ctx context.Context, req oapi.ListSandboxesRequestObject) (oapi.ListSandboxesResponseObject, error) {
	query := service.ListSandboxes{Limit: value(req.Params.Limit), Page: value(req.Params.Page)}
	for _, state := range value(req.Params.State) {
		query.States = append(query.States, wrenn.State(state))
	}
	for _, pair := range value(req.Params.Metadata) {
		name, want, _ := strings.Cut(pair, "=")
		if query.Metadata == nil {
			query.Metadata = map[string]string{}
		}
		if had, twice := query.Metadata[name]; twice && had != want {
			return nil, invalid("metadata: %s is given as both %q and %q", name, shorten(had), shorten(want))
		}
		query.Metadata[name] = want
	}
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	page, next, err := h.s.service.ListSandboxes(ctx, callerOf(ctx), query)
	if err != nil {
		return nil, err
	}
	answer := oapi.ListSandboxes200JSONResponse{Body: make([]oapi.Sandbox, 0, len(page))} // none is [], not null
	for i := range page {
		answer.Body = append(answer.Body, sandbox(&page[i]))
	}
	if next != "" {
		answer.Headers.XNextPage = &next
		answer.Headers.Link = new(nextLink(req.Params, next))
	}
	return answer, nil
}

func (h *handlers) GetSandbox(ctx context.Context, req oapi.GetSandboxRequestObject) (oapi.GetSandboxResponseObject, error) {
	sb, err := h.change(ctx, req.ID, h.s.service.Sandbox)
	if err != nil {
		return nil, err
	}
	return oapi.GetSandbox200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}

func (h *handlers) DeleteSandbox(ctx context.Context, req oapi.DeleteSandboxRequestObject) (oapi.DeleteSandboxResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.DeleteSandbox(ctx, callerOf(ctx), wrenn.SandboxID(req.ID)); err != nil {
		return nil, err
	}
	return oapi.DeleteSandbox204Response{}, nil
}

func (h *handlers) PauseSandbox(ctx context.Context, req oapi.PauseSandboxRequestObject) (oapi.PauseSandboxResponseObject, error) {
	options := wrenn.PauseOptions{DiskOnly: value(req.Params.DiskOnly), Durable: value(req.Params.Durable)}
	if value(req.Params.Force) {
		options.Guest = wrenn.PauseForced
	}
	pause := func(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
		return h.s.service.PauseSandboxBy(ctx, c, id, options)
	}
	sb, err := h.change(ctx, req.ID, pause)
	if err != nil {
		return nil, err
	}
	return oapi.PauseSandbox200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}

func (h *handlers) ResumeSandbox(ctx context.Context, req oapi.ResumeSandboxRequestObject) (oapi.ResumeSandboxResponseObject, error) {
	resume := h.s.service.ResumeSandbox
	if value(req.Params.Boot) {
		resume = h.s.service.BootSandbox
	}
	sb, err := h.change(ctx, req.ID, resume)
	if err != nil {
		return nil, err
	}
	return oapi.ResumeSandbox200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}

func (h *handlers) SetSandboxTimeout(ctx context.Context, req oapi.SetSandboxTimeoutRequestObject) (oapi.SetSandboxTimeoutResponseObject, error) {
	set := func(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
		return h.s.service.SetTimeout(ctx, c, id, timeout(req.Body.TimeoutSec))
	}
	sb, err := h.change(ctx, req.ID, set)
	if err != nil {
		return nil, err
	}
	return oapi.SetSandboxTimeout200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}

// change calls do for one sandbox, within the time limit of a call, and returns its result.
func (h *handlers) change(ctx context.Context, id string, do func(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)) (*oapi.OneSandboxJSONResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	sb, err := do(ctx, callerOf(ctx), wrenn.SandboxID(id))
	if err != nil {
		return nil, err
	}
	answer, err := h.sandboxWithPorts(ctx, sb)
	if err != nil {
		return nil, err
	}
	return &oapi.OneSandboxJSONResponse{Body: answer}, nil
}

func (h *handlers) CreateKey(ctx context.Context, req oapi.CreateKeyRequestObject) (oapi.CreateKeyResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	scopes, err := scopesOf(req.Body)
	if err != nil {
		return nil, err
	}
	k, secret, err := h.s.service.CreateKey(ctx, callerOf(ctx), service.NewKey{
		Name: strings.TrimSpace(req.Body.Name), Scopes: scopes, ExpiresAt: value(req.Body.ExpiresAt),
	})
	if err != nil {
		return nil, err
	}
	key := keyOf(k)
	return oapi.CreateKey201JSONResponse{Body: oapi.CreatedKey{
		ID: key.ID, Name: key.Name, Hint: key.Hint, Scopes: key.Scopes, Role: key.Role, CreatedAt: key.CreatedAt, LastUsedAt: key.LastUsedAt, ExpiresAt: key.ExpiresAt,
		Key: secret,
	}}, nil
}

// scopesOf returns the scopes of a key that is to be made.
func scopesOf(body *oapi.CreateKey) (wrenn.Scopes, error) {
	switch {
	case body.Role == nil:
		return wrenn.ParseScopes(textsOf(value(body.Scopes)))
	case body.Scopes != nil:
		return 0, invalid("a key has a role or scopes, not both")
	}
	return wrenn.ParseRole(string(*body.Role))
}

func (h *handlers) ListKeys(ctx context.Context, _ oapi.ListKeysRequestObject) (oapi.ListKeysResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	keys, err := h.s.service.ListKeys(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListKeys200JSONResponse{Body: make([]oapi.Key, 0, len(keys))}
	for _, k := range keys {
		answer.Body = append(answer.Body, keyOf(k))
	}
	return answer, nil
}

func keyOf(k service.Key) oapi.Key {
	out := oapi.Key{
		ID: k.ID, Name: k.Name, Hint: k.Hint, Scopes: []oapi.Scope{}, CreatedAt: k.CreatedAt.UTC(),
		LastUsedAt: moment(k.LastUsedAt), ExpiresAt: moment(k.ExpiresAt),
	}
	for _, scope := range k.Scopes.Texts() {
		out.Scopes = append(out.Scopes, oapi.Scope(scope))
	}
	if role := k.Scopes.Role(); role != "" {
		out.Role = new(oapi.Role(role))
	}
	return out
}

// textsOf returns the texts of an enumeration.
func textsOf[T ~string](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// ListAuditEntries answers with a page of the audit log.
func (h *handlers) ListAuditEntries(ctx context.Context, req oapi.ListAuditEntriesRequestObject) (oapi.ListAuditEntriesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	entries, next, err := h.s.service.AuditLog(ctx, callerOf(ctx), service.ListAudit{
		Since: value(req.Params.Since), Until: value(req.Params.Until), Page: value(req.Params.Page), Limit: value(req.Params.Limit),
	})
	if err != nil {
		return nil, err
	}
	answer := oapi.ListAuditEntries200JSONResponse{Body: make([]oapi.AuditEntry, 0, len(entries))}
	for _, e := range entries {
		answer.Body = append(answer.Body, oapi.AuditEntry{
			At: e.At, KeyID: e.Key, KeyName: e.KeyName, Address: e.Address, RequestID: e.RequestID, Operation: e.Operation, Path: e.Path, Status: e.Status,
		})
	}
	if next != "" {
		answer.Headers.XNextPage = &next
	}
	return answer, nil
}

func (h *handlers) RevokeKey(ctx context.Context, req oapi.RevokeKeyRequestObject) (oapi.RevokeKeyResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.RevokeKey(ctx, callerOf(ctx), req.ID); err != nil {
		return nil, err
	}
	return oapi.RevokeKey204Response{}, nil
}

func (h *handlers) GetHealth(context.Context, oapi.GetHealthRequestObject) (oapi.GetHealthResponseObject, error) {
	return oapi.GetHealth200JSONResponse{YesJSONResponse: oapi.YesJSONResponse{Body: oapi.Status{Status: "ok"}}}, nil
}

// readyWait bounds the wait for the database: probes have short timeouts themselves.
const readyWait = 5 * time.Second

func (h *handlers) GetReady(ctx context.Context, _ oapi.GetReadyRequestObject) (oapi.GetReadyResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	if h.s.stopping.Err() != nil {
		return nil, wrenn.Errorf(wrenn.Unavailable, "the server is stopping")
	}
	if err := h.s.service.Ready(ctx); err != nil {
		if failureOf(ctx, err).status != 503 {
			err = &wrenn.Error{Code: wrenn.Unavailable, Message: "the server is not ready", Err: err}
		}
		return nil, err
	}
	return oapi.GetReady200JSONResponse{YesJSONResponse: oapi.YesJSONResponse{Body: oapi.Status{Status: "ready"}}}, nil
}

// GetVersion answers with what this server was built from.
func (h *handlers) GetVersion(context.Context, oapi.GetVersionRequestObject) (oapi.GetVersionResponseObject, error) {
	built := buildinfo.Read()
	return oapi.GetVersion200JSONResponse{Version: built.Version, Commit: built.Commit, Date: built.Date}, nil
}
