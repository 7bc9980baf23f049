package e2b

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// create returns the operation for one of the two dialects, which differ by the default timeout.
func (s *Server) create(timeout time.Duration) operation {
	return func(r *http.Request, c service.Caller) (int, any, error) {
		var req oapi.NewSandbox
		if err := decode(r, &req); err != nil {
			return 0, nil, err
		}
		if err := refuseUnbuilt(&req); err != nil {
			return 0, nil, err
		}
		d, err := s.seconds(req.Timeout, timeout)
		if err != nil {
			return 0, nil, err
		}
		network := oapi.NetworkRules{}
		if req.Network != nil {
			network = *req.Network
		}
		policy, err := parsePolicy(network, req.AllowInternetAccess)
		if err != nil {
			return 0, nil, err
		}
		want := service.CreateSandbox{Metadata: req.Metadata, Ingress: ingressOf(network), SandboxSpec: wrenn.SandboxSpec{
			Template: ourName(req.TemplateID), EndOfLife: wrenn.EndOfLife{Timeout: d, OnTimeout: wrenn.DestroyOnTimeout, Absolute: true},
			AutoResume: req.AutoResume != nil && req.AutoResume.Enabled, Env: req.EnvVars, Volumes: parseMounts(req.VolumeMounts), Network: policy,
			DiskMiB: req.DiskSizeMB,
		}}
		if want.OnTimeout, err = onTimeoutOf(&req); err != nil {
			return 0, nil, err
		}
		sb, err := s.createSandbox(r, c, &req, want)
		if wrenn.CodeOf(err) == wrenn.NotFound && len(req.VolumeMounts) == 0 {
			return 0, nil, noTemplate(req.TemplateID)
		}
		return s.created(r.Context(), http.StatusCreated, sb, err)
	}
}

// createSandbox creates a sandbox, once if the request has a key.
func (s *Server) createSandbox(r *http.Request, c service.Caller, req *oapi.NewSandbox, want service.CreateSandbox) (*wrenn.Sandbox, error) {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return s.service.CreateSandbox(r.Context(), c, want)
	}
	text, err := json.Marshal(req) // what the request says: without unknown fields, and in one order
	if err != nil {
		return nil, err
	}
	fingerprint := sha256.Sum256([]byte(r.URL.RawQuery + "\n" + string(text)))
	return s.service.CreateSandboxOnce(r.Context(), c, service.RequestKey{Route: r.URL.Path, Key: key, Fingerprint: fingerprint[:]}, want)
}

// created is the answer with a sandbox that the caller may use now.
func (s *Server) created(ctx context.Context, status int, sb *wrenn.Sandbox, err error) (int, any, error) {
	if err != nil {
		return 0, nil, err
	}
	out, err := s.sandboxOf(ctx, sb)
	return status, out, err
}

// sandboxOf returns a sandbox with its secrets.
func (s *Server) sandboxOf(ctx context.Context, sb *wrenn.Sandbox) (out oapi.Sandbox, err error) {
	token, err := s.service.AccessToken(ctx, sb.ID)
	if err != nil {
		return out, err
	}
	ingress, err := s.service.Ingress(ctx, sb.ID)
	if wrenn.CodeOf(err) == wrenn.NotFound { // it has ended since
		err = nil
	}
	var traffic string
	if err == nil && ingress.Private {
		traffic, err = s.service.TrafficToken(ctx, sb.ID)
	}
	return oapi.Sandbox{
		TrafficAccessToken: traffic, TemplateID: sb.Template, SandboxID: string(sb.ID), ClientID: clientID, Alias: sb.Template, EnvdVersion: envdVersion, EnvdAccessToken: token, Domain: s.domain,
	}, err
}

// seconds reads a timeout; 0 ends a sandbox at once, as nearly as can be said.
func (s *Server) seconds(given *int64, otherwise time.Duration) (time.Duration, error) {
	if given == nil {
		return otherwise, nil
	}
	if *given < 0 || *given > math.MaxInt32 {
		return 0, invalid("timeout is a number of seconds, 0 or more")
	}
	if most := s.service.MaxTimeout(); time.Duration(*given)*time.Second > most {
		return 0, invalid("Timeout cannot be greater than %d hours", most/time.Hour) // E2B's text
	}
	return max(time.Duration(*given)*time.Second, time.Second), nil
}

// id reads the sandbox's id from the path. Older clients add that of a client.
func id(r *http.Request) (wrenn.SandboxID, error) {
	short, _, _ := strings.Cut(chi.URLParam(r, "sandboxID"), "-")
	parsed, err := wrenn.ParseSandboxID(short)
	if err != nil { // no sandbox has such an id
		return "", notFound(short)
	}
	return parsed, nil
}

func notFound[T ~string](id T) error {
	return &failure{Status: http.StatusNotFound, Message: fmt.Sprintf("sandbox \"%.64s\" not found", id)}
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
	token := "" // a key that may only read cannot use the sandbox by it
	if c.Scopes.Allow(wrenn.ScopeSandboxes) {
		if token, err = s.service.AccessToken(r.Context(), sb.ID); err != nil {
			return 0, nil, err
		}
	}
	ingress, err := s.service.Ingress(r.Context(), sb.ID)
	if wrenn.CodeOf(err) == wrenn.NotFound { // it has ended since
		return 0, nil, notFound(sb.ID)
	}
	out := detailOf(sb, token, ingress)
	out.Domain = s.domain
	return http.StatusOK, out, err
}

func (s *Server) kill(r *http.Request, c service.Caller) (int, any, error) {
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.DeleteSandbox(r.Context(), c, sb.ID)
}

func (s *Server) setTimeout(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.SetTimeout
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	d, err := s.seconds(&req.Timeout, 0)
	if err == nil {
		_, err = s.service.SetTimeout(r.Context(), c, sb.ID, d)
	}
	return http.StatusNoContent, nil, err
}

// refresh is an old form of extending a sandbox's life.
func (s *Server) refresh(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.Refresh
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	d, err := s.seconds(req.Duration, v1Timeout)
	if err == nil {
		_, err = s.extend(r.Context(), c, sb, d)
	}
	return http.StatusNoContent, nil, err
}

// extend has the sandbox live at least d from now, to a second, never shorter than before.
func (s *Server) extend(ctx context.Context, c service.Caller, sb *wrenn.Sandbox, d time.Duration) (*wrenn.Sandbox, error) {
	if sb.Timeout == 0 || endOf(sb).After(time.Now().Add(d-time.Second)) {
		return sb, nil
	}
	return s.service.SetTimeout(ctx, c, sb.ID, d)
}

// connect resumes a paused sandbox, 201, and extends the life of one that runs, 200.
func (s *Server) connect(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.Connect
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	d, err := s.seconds(req.Timeout, v2Timeout)
	if err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	if sb.State != wrenn.Running {
		status = http.StatusCreated
		if sb, err = s.wake(r.Context(), c, sb, d, without(req.Memory)); err != nil {
			return 0, nil, err
		}
	}
	sb, err = s.extend(r.Context(), c, sb, d)
	return s.created(r.Context(), status, sb, err)
}

// wake resumes a sandbox. Its timeout is set before: the old one may be too short
// for another request to set it after. With boot it boots from its disk.
func (s *Server) wake(ctx context.Context, c service.Caller, sb *wrenn.Sandbox, d time.Duration, boot bool) (*wrenn.Sandbox, error) {
	if sb.Absolute && sb.State == wrenn.Paused {
		_, err := s.service.SetNextTimeout(ctx, c, sb.ID, d)
		if err != nil && wrenn.CodeOf(err) != wrenn.FailedPrecondition { // another request wakes it
			return nil, err
		}
	}
	if boot {
		return s.service.BootSandbox(ctx, c, sb.ID)
	}
	return s.service.ResumeSandbox(ctx, c, sb.ID)
}

// resume is the old form of connect for a paused sandbox.
func (s *Server) resume(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.Resume
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if sb.State == wrenn.Running {
		return 0, nil, &failure{Status: http.StatusConflict, Message: "the sandbox runs already"}
	}
	d, err := s.seconds(req.Timeout, v1Timeout)
	if err == nil {
		sb, err = s.wake(r.Context(), c, sb, d, without(req.Memory))
	}
	if err == nil {
		sb, err = s.service.SetTimeout(r.Context(), c, sb.ID, d)
	}
	return s.created(r.Context(), http.StatusCreated, sb, err)
}

// without reports whether a request asks to leave out the memory.
func without(memory *bool) bool { return memory != nil && !*memory }

// pause answers 409 for a sandbox that is paused; clients take that as "it was".
func (s *Server) pause(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.Pause
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	sb, err := s.find(r, c)
	if err != nil {
		return 0, nil, err
	}
	if sb.State == wrenn.Paused || sb.State == wrenn.Pausing {
		return 0, nil, &failure{Status: http.StatusConflict, Message: "the sandbox is paused already"}
	}
	options := wrenn.PauseOptions{DiskOnly: without(req.Memory), Guest: wrenn.PauseIfAble}
	if req.RequireHealthyGuest {
		options.Guest = wrenn.PauseHealthy
	}
	_, err = s.service.PauseSandboxBy(r.Context(), c, sb.ID, options)
	return http.StatusNoContent, nil, err
}
