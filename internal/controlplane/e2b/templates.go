package e2b

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn"
	"wrenn/internal/controlplane/service"
)

// template is an entry of the list of templates.
type template struct {
	TemplateID    string     `json:"templateID"`
	BuildID       string     `json:"buildID"`
	CPUCount      int        `json:"cpuCount"`
	MemoryMB      int        `json:"memoryMB"`
	DiskSizeMB    int        `json:"diskSizeMB"`
	Public        bool       `json:"public"`
	Aliases       []string   `json:"aliases"`
	Names         []string   `json:"names"`
	CreatedAt     time.Time  `json:"createdAt"`
	UpdatedAt     time.Time  `json:"updatedAt"`
	CreatedBy     *string    `json:"createdBy"`
	LastSpawnedAt *time.Time `json:"lastSpawnedAt"`
	SpawnCount    int        `json:"spawnCount"`
	BuildCount    int        `json:"buildCount"`
	EnvdVersion   string     `json:"envdVersion"`
	BuildStatus   string     `json:"buildStatus"`
}

func (s *Server) templates(r *http.Request, c service.Caller) (int, any, error) {
	all, err := s.service.ListTemplates(r.Context(), c)
	out := []template{}
	for i := range all {
		out = append(out, templateOf(&all[i]))
	}
	return http.StatusOK, out, err
}

func templateOf(t *wrenn.Template) template {
	name := t.Name.String()
	out := template{
		TemplateID: name, Aliases: []string{name}, Names: []string{name}, DiskSizeMB: diskSizeMB, EnvdVersion: envdVersion,
		CPUCount: wrenn.DefaultVCPUs, MemoryMB: wrenn.DefaultMemoryMiB, BuildStatus: "ready", Public: t.Name.Base(),
	}
	build := t.Current
	if build == nil {
		build = t.Latest
	}
	if build == nil { // the base, which is no build of a team's
		return out
	}
	out.BuildID, out.CreatedAt, out.UpdatedAt, out.BuildCount = string(build.ID), build.CreatedAt, build.UpdatedAt, 1
	out.CPUCount, out.MemoryMB = build.Spec.VCPUs, build.Spec.MemoryMiB
	if t.Current == nil {
		out.BuildStatus = buildStatuses[build.State]
	}
	return out
}

// buildStatuses are the words for a template none of whose builds is ready.
var buildStatuses = map[wrenn.GenerationState]string{wrenn.GenerationBuilding: "building", wrenn.GenerationFailed: "error"}

// alias answers 200 when the template exists, else 404.
func (s *Server) alias(r *http.Request, c service.Caller) (int, any, error) {
	name, err := templateName(r, "alias")
	if err != nil {
		return 0, nil, err
	}
	t, err := s.service.Template(r.Context(), c, name)
	if code := wrenn.CodeOf(err); code == wrenn.NotFound || code == wrenn.Invalid {
		return 0, nil, &failure{http.StatusNotFound, fmt.Sprintf("template '%.100s' not found", name)}
	}
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]any{"templateID": t.Name.String(), "public": false}, nil
}

func (s *Server) deleteTemplate(r *http.Request, c service.Caller) (int, any, error) {
	name, err := templateName(r, "id")
	if err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.DeleteTemplate(r.Context(), c, name)
}

// templateName reads a name from the path, where a slash of it is escaped.
func templateName(r *http.Request, parameter string) (string, error) {
	name, err := url.PathUnescape(chi.URLParam(r, parameter))
	if err != nil {
		return "", &failure{http.StatusBadRequest, "the path is not escaped as it must be"}
	}
	return name, nil
}
