package e2b

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// Builds is the part of Service that builds templates.
type Builds interface {
	RequestBuild(context.Context, service.Caller, service.RequestBuild) (*wrenn.Build, error)
	StartRequestedBuild(ctx context.Context, c service.Caller, template string, id wrenn.BuildID, req service.BuildTemplate) error
	BuildProgress(ctx context.Context, c service.Caller, template string, id wrenn.BuildID, from int64, limit int) (*wrenn.Build, []service.LogLine, error)
	BuildLogPage(ctx context.Context, c service.Caller, template string, id wrenn.BuildID, page service.LogPage) ([]service.LogLine, error)
	TagHistory(ctx context.Context, c service.Caller, name string, h service.History) ([]service.Assignment, error)
	TagTemplate(ctx context.Context, c service.Caller, template string, tags []string) (wrenn.BuildID, error)
	UntagTemplate(ctx context.Context, c service.Caller, name string, tags []string) error
	HasBuildFiles(ctx context.Context, c service.Caller, hash string) (bool, error)
	PutBuildFiles(ctx context.Context, c service.Caller, hash string, content io.Reader) error
	UploadToken(ctx context.Context, c service.Caller, hash string) (string, error)
	CheckUpload(ctx context.Context, token, hash string) (service.Caller, error)
}

// What a build has that asks for nothing else, as at E2B.
const (
	buildVCPUs     = 2
	buildMemoryMiB = 1024
	buildUser      = "user"
	buildWorkdir   = "/home/user"
	readyTimeout   = 10 * time.Minute
)

// stalledUpload is when an upload is given up of which nothing arrives.
const stalledUpload = time.Minute

// baseImage is the image that clients start from when their program names none.
const baseImage = "e2bdev/base"

// ourName returns a template's name as the service knows it, where the default tag
// has another name.
func ourName(name string) string { return strings.TrimSuffix(name, ":"+defaultTag) }

// ourTags is ourName for tags.
func ourTags(tags []string) []string {
	out := make([]string, len(tags))
	for i, tag := range tags {
		out[i] = tag
		if tag == defaultTag {
			out[i] = wrenn.DefaultTag
		}
	}
	return out
}

// refuseBase refuses the name of the base for builds and snapshots: a team's own base,
// which its creates get from then on, is made by wrenn template build.
func refuseBase(name string) error {
	if template, _, _ := strings.Cut(name, ":"); template == wrenn.BaseTemplate {
		return invalid("template %s is built in: choose another name; a team's own base is built by wrenn template build %[1]s", wrenn.BaseTemplate)
	}
	return nil
}

func (s *Server) requestBuild(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.RequestBuild
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	name, tag, tagged := strings.Cut(cmp.Or(req.Name, req.Alias), ":")
	if err := refuseBase(name); err != nil {
		return 0, nil, err
	}
	tags := req.Tags
	switch {
	case tagged:
		tags = append([]string{tag}, tags...)
	case len(tags) == 0:
		tags = []string{defaultTag}
	}
	tags = unique(tags)
	ours := ourTags(tags)
	g, err := s.service.RequestBuild(r.Context(), c, service.RequestBuild{
		Name: name + ":" + ours[0], MoreTags: ours[1:],
		Size:    wrenn.Size{VCPUs: cmp.Or(req.CPUCount, buildVCPUs), MemoryMiB: cmp.Or(req.MemoryMB, buildMemoryMiB)},
		DiskMiB: req.DiskSizeMB, MinFreeDiskMiB: req.MinFreeDiskMb,
	})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, oapi.RequestedBuild{
		TemplateID: g.Template.String(), BuildID: uuidOf(g.ID), Names: []string{name}, Aliases: []string{name}, Tags: tags,
	}, nil
}

// unique returns texts without those that came before.
func unique(texts []string) []string {
	var out []string
	for _, text := range texts {
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// buildIn returns the template and the build that the path names.
func buildIn(r *http.Request) (template string, id wrenn.BuildID, err error) {
	if template, err = templateName(r, "templateID"); err == nil {
		id, err = buildIDOf(chi.URLParam(r, "buildID"))
	}
	return template, id, err
}

func (s *Server) startBuild(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.StartBuild
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	template, id, err := buildIn(r)
	if err != nil {
		return 0, nil, err
	}
	build, err := buildWanted(req)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, nil, s.service.StartRequestedBuild(r.Context(), c, template, id, build)
}

// buildWanted returns a build as the service knows it.
func buildWanted(req oapi.StartBuild) (out service.BuildTemplate, err error) {
	if req.FromImage != "" && req.FromTemplate != "" {
		return out, invalid("a build has fromImage or fromTemplate, not both")
	}
	out.FromTemplate = ourName(req.FromTemplate)
	switch {
	case out.FromTemplate != "":
	case strings.TrimSuffix(req.FromImage, ":latest") == baseImage:
		out.FromTemplate = wrenn.BaseTemplate
	default:
		out.Spec.From.OCI = req.FromImage
	}
	if out.Login, err = loginOf(req.FromImageRegistry); err != nil {
		return out, err
	}
	out.Spec.User, out.Spec.Workdir = buildUser, buildWorkdir
	out.Spec.StartCmd, out.Spec.ReadyCmd, out.Spec.ReadyTimeout = req.StartCmd, req.ReadyCmd, readyTimeout
	out.Spec.NoCache = req.Force
	for _, step := range req.Steps {
		out.Spec.Steps = append(out.Spec.Steps, wrenn.BuildStep{
			Kind: wrenn.StepKind(step.Type), Args: step.Args, Files: step.FilesHash, Force: step.Force,
		})
	}
	return out, nil
}

func loginOf(registry *oapi.BuildRegistry) (wrenn.RegistryLogin, error) {
	if registry == nil {
		return wrenn.RegistryLogin{}, nil
	}
	switch registry.Type {
	case "registry":
		return wrenn.RegistryLogin{Username: registry.Username, Password: registry.Password}, nil
	case "gcp":
		return wrenn.RegistryLogin{Username: "_json_key", Password: registry.ServiceAccountJSON}, nil
	}
	return wrenn.RegistryLogin{}, invalid("fromImageRegistry of AWS is not built yet: give the user AWS and a token of `aws ecr get-login-password` as a registry of the type registry")
}

// maxLogEntries bounds the lines of a log in one answer.
const maxLogEntries = 100

func (s *Server) buildStatus(r *http.Request, c service.Caller) (int, any, error) {
	template, id, err := buildIn(r)
	if err != nil {
		return 0, nil, err
	}
	query := r.URL.Query() // the document has checked it
	from, _ := strconv.ParseInt(query.Get("logsOffset"), 10, 64)
	limit, _ := strconv.Atoi(query.Get("limit"))
	limit = cmp.Or(limit, maxLogEntries)
	g, lines, err := s.service.BuildProgress(r.Context(), c, template, id, from, limit)
	if err != nil {
		return 0, nil, err
	}
	out := oapi.BuildProgress{TemplateID: template, BuildID: uuidOf(g.ID), Logs: []string{}, LogEntries: []oapi.BuildLogEntry{}, Status: progressOf(g)}
	if level := query.Get("level"); level != "warn" && level != "error" {
		out.LogEntries = entriesOf(lines, from, limit)
	}
	if out.Status == oapi.BuildStatusError {
		out.Reason = &oapi.BuildReason{Message: g.Reason, Step: g.FailedStep}
	}
	return http.StatusOK, out, nil
}

// progressOf returns the state of a build. One that was ready and replaced since was ready.
func progressOf(g *wrenn.Build) oapi.BuildStatus {
	switch {
	case g.State == wrenn.BuildRequested:
		return oapi.BuildStatusWaiting
	case g.State == wrenn.BuildBuilding:
		return oapi.BuildStatusBuilding
	case g.State == wrenn.BuildReady, g.State == wrenn.BuildDeleted && g.SizeBytes > 0:
		return oapi.BuildStatusReady
	}
	return oapi.BuildStatusError
}

// entriesOf returns lines of a log. Clients count the entries to know the next line,
// so lines that were dropped have entries, too.
func entriesOf(lines []service.LogLine, from int64, limit int) []oapi.BuildLogEntry {
	out := []oapi.BuildLogEntry{}
	for _, line := range lines {
		for from < line.Number && len(out) < limit {
			out = append(out, oapi.BuildLogEntry{Timestamp: line.At, Message: "(a line that was dropped)", Level: oapi.BuildLogEntryLevelInfo})
			from++
		}
		if len(out) == limit {
			break
		}
		out = append(out, oapi.BuildLogEntry{Timestamp: line.At, Message: line.Text, Level: oapi.BuildLogEntryLevelInfo})
		from++
	}
	return out
}

// uploadLink answers where the files of a step are uploaded to.
func (s *Server) uploadLink(r *http.Request, c service.Caller) (int, any, error) {
	hash := chi.URLParam(r, "hash")
	present, err := s.service.HasBuildFiles(r.Context(), c, hash)
	if err != nil {
		return 0, nil, err
	}
	token, err := s.service.UploadToken(r.Context(), c, hash)
	if err != nil {
		return 0, nil, err
	}
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" { // a balancer may have the certificate
		scheme = "https"
	}
	link := url.URL{Scheme: scheme, Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: url.Values{"token": {token}}.Encode()}
	return http.StatusCreated, oapi.BuildUpload{Present: present, URL: link.String()}, nil
}

// upload stores the files of a step. Its URL has a token in place of a key.
func (s *Server) upload(op *contract.Operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := s.storeUpload(op, w, r); err != nil {
			s.refuse(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Server) storeUpload(op *contract.Operation, w http.ResponseWriter, r *http.Request) error {
	if err := violation(op.CheckParameters(r)); err != nil {
		return err
	}
	hash := chi.URLParam(r, "hash")
	caller, err := s.service.CheckUpload(r.Context(), r.URL.Query().Get("token"), hash)
	if err != nil {
		return err
	}
	leave, err := s.admission.EnterTeam(caller.Team)
	if err != nil {
		return err
	}
	defer leave()
	if r.ContentLength > wrenn.MaxArchiveBytes {
		return invalid("the files of a step have at most %d MiB, as they are uploaded", wrenn.MaxArchiveBytes>>20)
	}
	return s.service.PutBuildFiles(r.Context(), caller, hash, &patient{r.Body, http.NewResponseController(w)})
}

// patient reads a body as long as something arrives.
type patient struct {
	io.Reader
	connection *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.connection.SetReadDeadline(time.Now().Add(stalledUpload))
	n, err := p.Reader.Read(b)
	if err != nil {
		_ = p.connection.SetReadDeadline(time.Time{}) // what follows takes the time that it takes
	}
	return n, err
}

func (s *Server) assignTags(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.AssignTags
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	id, err := s.service.TagTemplate(r.Context(), c, ourName(req.Target), ourTags(req.Tags))
	return http.StatusCreated, oapi.AssignedTags{Tags: req.Tags, BuildID: uuidOf(id)}, err
}

func (s *Server) removeTags(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.RemoveTags
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.UntagTemplate(r.Context(), c, ourName(req.Name), ourTags(req.Tags))
}
