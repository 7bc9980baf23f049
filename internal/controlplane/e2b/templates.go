package e2b

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (s *Server) templates(r *http.Request, c service.Caller) (int, any, error) {
	all, err := s.service.ListTemplates(r.Context(), c)
	out := []oapi.Template{}
	for i := range all {
		out = append(out, templateOf(&all[i]))
	}
	return http.StatusOK, out, err
}

func templateOf(t *wrenn.Template) oapi.Template {
	name := t.Name.String()
	out := oapi.Template{
		TemplateID: name, BuildID: noBuild, Aliases: []string{name}, Names: []string{name}, DiskSizeMB: diskSize(0), EnvdVersion: envdVersion,
		CPUCount: wrenn.DefaultVCPUs, MemoryMB: wrenn.DefaultMemoryMiB, BuildStatus: oapi.BuildStatusReady, Public: t.Name.Base(),
	}
	build := t.Current
	if build == nil {
		build = t.Latest
	}
	if build == nil { // the base, which is no build of a team's
		return out
	}
	out.BuildID, out.CreatedAt, out.UpdatedAt, out.BuildCount = uuidOf(build.ID), build.CreatedAt, build.UpdatedAt, 1
	out.CPUCount, out.MemoryMB, out.DiskSizeMB = build.Spec.VCPUs, build.Spec.MemoryMiB, diskSize(build.Spec.DiskMiB)
	if t.Current == nil {
		out.BuildStatus = buildStatuses[build.State]
	}
	return out
}

// buildStatuses are the words for a template none of whose builds is ready.
var buildStatuses = map[wrenn.BuildState]oapi.BuildStatus{
	wrenn.BuildBuilding: oapi.BuildStatusBuilding, wrenn.BuildFailed: oapi.BuildStatusError,
}

// alias answers 200 when the template exists, else 404.
func (s *Server) alias(r *http.Request, c service.Caller) (int, any, error) {
	name, err := templateName(r, "alias")
	if err != nil {
		return 0, nil, err
	}
	t, err := s.service.Template(r.Context(), c, name)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return 0, nil, noTemplate(name)
	}
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, oapi.TemplateAlias{TemplateID: t.Name.String(), Public: t.Name.Base()}, nil
}

func noTemplate(name string) error {
	return &failure{Status: http.StatusNotFound, Message: fmt.Sprintf("template '%.100s' not found", name)}
}

func (s *Server) deleteTemplate(r *http.Request, c service.Caller) (int, any, error) {
	name, err := templateName(r, "templateID")
	if err != nil {
		return 0, nil, err
	}
	return http.StatusNoContent, nil, s.service.DeleteTemplate(r.Context(), c, name)
}

// templateName reads a name from the path, where a slash of it is escaped. What no
// template can be named is not found, as any other template that does not exist.
func templateName(r *http.Request, parameter string) (string, error) {
	name, err := pathText(r, parameter)
	if err != nil {
		return "", err
	}
	name = ourName(name)
	if _, err := wrenn.ParseTemplateName(name); err != nil {
		return "", noTemplate(name)
	}
	return name, nil
}

// pathText reads a parameter of the path, where its slashes are escaped.
func pathText(r *http.Request, parameter string) (string, error) {
	text, err := url.PathUnescape(chi.URLParam(r, parameter))
	if err != nil {
		return "", invalid("the path is not escaped as it must be")
	}
	return text, nil
}
