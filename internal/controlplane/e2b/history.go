package e2b

import (
	"cmp"
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

// What a page has when its client does not say, as at E2B.
const (
	groupAssignments = 6
	groupsOnPage     = 25
	tagAssignments   = 50
)

// buildLogs answers with lines of a build's log by their times.
func (s *Server) buildLogs(r *http.Request, c service.Caller) (int, any, error) {
	template, id, err := buildIn(r)
	if err != nil {
		return 0, nil, err
	}
	query := r.URL.Query() // the document has checked it
	page := service.LogPage{Backward: query.Get("direction") == "backward", Limit: maxLogEntries}
	if text := query.Get("limit"); text != "" {
		page.Limit, _ = strconv.Atoi(text)
	}
	if ms, _ := strconv.ParseInt(query.Get("cursor"), 10, 64); ms > 0 {
		page.Cursor = time.UnixMilli(ms)
	}
	if level := query.Get("level"); level == "warn" || level == "error" { // lines are info; the build may not exist
		page.Limit = 0
	}
	lines, err := s.service.BuildLogPage(r.Context(), c, template, id, page)
	out := oapi.BuildLogs{Logs: []oapi.BuildLogEntry{}}
	for _, line := range lines {
		out.Logs = append(out.Logs, oapi.BuildLogEntry{Timestamp: line.At, Message: line.Text, Level: oapi.BuildLogEntryLevelInfo})
	}
	return http.StatusOK, out, err
}

// historyOf returns assignments of the template that the path names.
func (s *Server) historyOf(r *http.Request, c service.Caller, h service.History) ([]service.Assignment, error) {
	given, err := templateName(r, "templateID")
	if err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(given, ":")
	list, err := s.service.TagHistory(r.Context(), c, name, h)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil, noTemplate(name)
	}
	return list, err
}

// tagGroups answers with a page of tags, each with its newest assignments.
func (s *Server) tagGroups(r *http.Request, c service.Caller) (int, any, error) {
	query := r.URL.Query() // the document has checked it
	perTag, _ := strconv.Atoi(query.Get("assignmentLimit"))
	perTag = cmp.Or(perTag, groupAssignments)
	limit, _ := strconv.Atoi(query.Get("tagsLimit"))
	list, err := s.historyOf(r, c, service.History{PerTag: perTag + 1}) // one more tells that there are more
	if err != nil {
		return 0, nil, err
	}
	groups, err := selectGroups(groupsOf(list), query)
	if err != nil {
		return 0, nil, err
	}
	out := oapi.TagGroups{Tags: []oapi.TagGroup{}}
	for i, g := range groups {
		if i == cmp.Or(limit, groupsOnPage) {
			out.NextCursor = new(groups[i-1].cursor(query.Get("sort")))
			break
		}
		group := oapi.TagGroup{Tag: g.tag, Assignments: []oapi.TagAssignment{}, HasMore: len(g.newest) > perTag}
		for _, a := range g.newest[:min(len(g.newest), perTag)] {
			group.Assignments = append(group.Assignments, assignmentOf(a))
		}
		out.Tags = append(out.Tags, group)
	}
	return http.StatusOK, out, nil
}

// tagGroup is a tag with its assignments, the newest first.
type tagGroup struct {
	tag    string
	newest []service.Assignment
}

// groupsOf returns the groups of a list in which those of a tag are together.
func groupsOf(list []service.Assignment) []tagGroup {
	var out []tagGroup
	for _, a := range list {
		tag := a.Tag
		if tag == wrenn.DefaultTag {
			tag = defaultTag
		}
		if len(out) == 0 || out[len(out)-1].tag != tag {
			out = append(out, tagGroup{tag: tag})
		}
		last := &out[len(out)-1]
		last.newest = append(last.newest, a)
	}
	return out
}

// cursor returns the text of the group's place in an order.
func (g *tagGroup) cursor(order string) string {
	if strings.HasPrefix(order, "name_") {
		return g.tag
	}
	return strconv.FormatInt(g.newest[0].Number, 10)
}

// selectGroups returns the groups that a query asks for, in its order, after its cursor.
func selectGroups(groups []tagGroup, query url.Values) ([]tagGroup, error) {
	order := cmp.Or(query.Get("sort"), "latest_desc")
	compare := func(a, b tagGroup) int { return cmp.Compare(a.newest[0].Number, b.newest[0].Number) }
	after := tagGroup{tag: query.Get("tagsCursor"), newest: []service.Assignment{{}}}
	if strings.HasPrefix(order, "name_") {
		compare = func(a, b tagGroup) int { return strings.Compare(a.tag, b.tag) }
	} else if after.tag != "" {
		var err error
		if after.newest[0].Number, err = strconv.ParseInt(after.tag, 10, 64); err != nil {
			return nil, invalid("tagsCursor is not one of this order: begin with the first page")
		}
	}
	if strings.HasSuffix(order, "_desc") {
		up := compare
		compare = func(a, b tagGroup) int { return up(b, a) }
	}
	groups = slices.DeleteFunc(groups, func(g tagGroup) bool {
		return !strings.Contains(g.tag, strings.ToLower(query.Get("search"))) || after.tag != "" && compare(g, after) <= 0
	})
	slices.SortFunc(groups, compare)
	return groups, nil
}

// tagAssignments answers with a page of what a tag has referred to.
func (s *Server) tagAssignments(r *http.Request, c service.Caller) (int, any, error) {
	tag, err := pathText(r, "tag")
	if err != nil {
		return 0, nil, err
	}
	query := r.URL.Query()
	limit, _ := strconv.Atoi(query.Get("limit")) // the document has checked it
	limit = cmp.Or(limit, tagAssignments)
	h := service.History{Tag: ourTags([]string{strings.ToLower(tag)})[0], PerTag: limit + 1}
	if text := query.Get("cursor"); text != "" {
		if h.Before, err = strconv.ParseInt(text, 10, 64); err != nil || h.Before <= 0 {
			return 0, nil, invalid("cursor is not one of this list: begin with the first page")
		}
	}
	list, err := s.historyOf(r, c, h)
	out := oapi.TagAssignments{Data: []oapi.TagAssignment{}}
	for i, a := range list {
		if i == limit {
			out.NextCursor = new(strconv.FormatInt(list[i-1].Number, 10))
			break
		}
		out.Data = append(out.Data, assignmentOf(a))
	}
	return http.StatusOK, out, err
}

func assignmentOf(a service.Assignment) oapi.TagAssignment {
	return oapi.TagAssignment{AssignmentID: a.ID, BuildID: uuidOf(a.Build), AssignedAt: a.At, BuildCreatedAt: a.Created, BuildFinishedAt: a.Ready}
}
