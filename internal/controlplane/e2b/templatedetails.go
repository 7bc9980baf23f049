package e2b

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/controlplane/e2b/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

// defaultTag is the tag of a template's name without one, as E2B has it.
const defaultTag = "default"

// templatePage answers a page of the templates, in the order of their names. The
// token of the next page is the last name of this one.
func (s *Server) templatePage(r *http.Request, c service.Caller) (int, any, error) {
	all, err := s.service.ListTemplates(r.Context(), c)
	if err != nil {
		return 0, nil, err
	}
	slices.SortFunc(all, func(a, b wrenn.Template) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	limit := maxPage
	if text := r.URL.Query().Get("limit"); text != "" {
		limit, _ = strconv.Atoi(text) // the document has checked it
	}
	out := page{}
	entries := []oapi.Template{}
	for i := range all {
		name := all[i].Name.String()
		if after := r.URL.Query().Get("nextToken"); after != "" && name <= after {
			continue
		}
		if len(entries) == limit {
			out.next = entries[limit-1].TemplateID
			break
		}
		entries = append(entries, templateOf(&all[i]))
	}
	out.entries = entries
	return http.StatusOK, out, nil
}

// defaultTemplates answers with the base, the one template that every team has.
func (s *Server) defaultTemplates(r *http.Request, c service.Caller) (int, any, error) {
	base, err := s.service.Template(r.Context(), c, wrenn.BaseTemplate)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, []oapi.Template{templateOf(base)}, nil
}

// findTemplate returns the template that the path names.
func (s *Server) findTemplate(r *http.Request, c service.Caller) (*wrenn.Template, error) {
	name, err := templateName(r, "templateID")
	if err != nil {
		return nil, err
	}
	t, err := s.service.Template(r.Context(), c, name)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil, noTemplate(name)
	}
	return t, err
}

// template answers with a template and its builds: the newest, and the one that
// sandboxes are made from.
func (s *Server) template(r *http.Request, c service.Caller) (int, any, error) {
	t, err := s.findTemplate(r, c)
	if err != nil {
		return 0, nil, err
	}
	of := templateOf(t)
	out := oapi.TemplateWithBuilds{
		TemplateID: of.TemplateID, BuildID: of.BuildID, CPUCount: of.CPUCount, MemoryMB: of.MemoryMB, DiskSizeMB: of.DiskSizeMB,
		Public: of.Public, Aliases: of.Aliases, Names: of.Names, CreatedAt: of.CreatedAt, UpdatedAt: of.UpdatedAt,
		EnvdVersion: of.EnvdVersion, BuildCount: of.BuildCount, BuildStatus: of.BuildStatus,
		Builds: []oapi.TemplateBuild{},
	}
	if t.Latest != nil {
		out.Builds = append(out.Builds, buildOf(t.Latest))
	}
	if t.Current != nil && t.Current.ID != t.Latest.ID {
		out.Builds = append(out.Builds, buildOf(t.Current))
	}
	return http.StatusOK, out, nil
}

func buildOf(build *wrenn.Build) oapi.TemplateBuild {
	status, ok := buildStatuses[build.State]
	if !ok {
		status = oapi.BuildStatusReady
	}
	out := oapi.TemplateBuild{
		BuildID: uuidOf(build.ID), Status: status, CreatedAt: build.CreatedAt, UpdatedAt: build.UpdatedAt,
		CPUCount: build.Spec.VCPUs, MemoryMB: build.Spec.MemoryMiB, DiskSizeMB: diskSize(build.Spec.DiskMiB), EnvdVersion: envdVersion,
	}
	if build.State != wrenn.BuildBuilding {
		out.FinishedAt = &build.UpdatedAt
	}
	return out
}

// updateTemplate answers for the command line, which publishes templates: those of a
// team stay the team's.
func (s *Server) updateTemplate(r *http.Request, c service.Caller) (int, any, error) {
	var req oapi.UpdateTemplate
	if err := decode(r, &req); err != nil {
		return 0, nil, err
	}
	t, err := s.findTemplate(r, c)
	if err != nil {
		return 0, nil, err
	}
	if req.Public && !t.Name.Base() {
		return 0, nil, invalid("a template cannot be published: the templates of a team are the team's alone")
	}
	return http.StatusOK, oapi.UpdatedTemplate{Names: []string{t.Name.String()}}, nil
}

// tagsOf returns the tags of the template that the path names whose builds are ready.
func (s *Server) tagsOf(r *http.Request, c service.Caller) ([]oapi.TemplateTag, error) {
	given, err := templateName(r, "templateID")
	if err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(given, ":")
	all, err := s.service.ListTemplates(r.Context(), c)
	if err != nil {
		return nil, err
	}
	out, found := []oapi.TemplateTag{}, false
	for _, t := range all {
		if t.Name.Name != name {
			continue
		}
		found = true
		if t.Current == nil {
			continue
		}
		_, tag, tagged := strings.Cut(t.Name.String(), ":")
		if !tagged {
			tag = defaultTag
		}
		out = append(out, oapi.TemplateTag{Tag: tag, BuildID: uuidOf(t.Current.ID), CreatedAt: t.Current.CreatedAt})
	}
	if !found {
		return nil, noTemplate(name)
	}
	return out, nil
}

func (s *Server) templateTags(r *http.Request, c service.Caller) (int, any, error) {
	tags, err := s.tagsOf(r, c)
	return http.StatusOK, tags, err
}

func (s *Server) countTemplateTags(r *http.Request, c service.Caller) (int, any, error) {
	tags, err := s.tagsOf(r, c)
	return http.StatusOK, oapi.TagCount{Total: len(tags)}, err
}

func (s *Server) findTemplateTag(r *http.Request, c service.Caller) (int, any, error) {
	tags, err := s.tagsOf(r, c)
	wanted := strings.ToLower(r.URL.Query().Get("tag"))
	if err == nil && wanted == "" {
		err = invalid("tag is needed")
	}
	exists := slices.ContainsFunc(tags, func(t oapi.TemplateTag) bool { return t.Tag == wanted })
	return http.StatusOK, oapi.TagFound{Exists: exists, NormalizedTag: wanted}, err
}

// teams answers with the team of the key, and the key itself: the command line
// stores it for later calls.
func (s *Server) teams(r *http.Request, c service.Caller) (int, any, error) {
	name, err := s.service.TeamName(r.Context(), c)
	return http.StatusOK, []oapi.Team{{TeamID: string(c.Team), Name: name, APIKey: contract.SecretIn(r), IsDefault: true}}, err
}
