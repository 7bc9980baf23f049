package e2b

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// request asks for a build, and returns the path of the template and that of the build.
func (s *surface) request(t *testing.T, body string) (template, build string, made map[string]any) {
	t.Helper()
	made, _, _ = s.call(t, "POST", "/v3/templates", body, 202)
	template = url.PathEscape(made["templateID"].(string))
	return "/templates/" + template, "/templates/" + template + "/builds/" + made["buildID"].(string), made
}

// end waits until a build has ended.
func (s *surface) end(t *testing.T, build string) (status map[string]any) {
	t.Helper()
	testkit.WaitUntil(t, "the build ends", func() bool {
		status, _, _ = s.call(t, "GET", build+"/status?logsOffset=0&limit=100", "", 200)
		return status["status"] == "ready" || status["status"] == "error"
	})
	return status
}

// put uploads to a URL without a key.
func put(t *testing.T, link, content string, want int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, link, strings.NewReader(content))
	testkit.Must(t, err)
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != want {
		t.Errorf("PUT %s: %d %s, %v", link, resp.StatusCode, text, err)
	}
}

// TestBuild sends what the SDKs send for Template.build.
func TestBuild(t *testing.T) {
	s := newSurface(t)
	template, build, made := s.request(t, `{"name":"app:v1","tags":["v1","default"],"memoryMB":512}`)
	want := map[string]any{
		"templateID": "app:v1", "buildID": made["buildID"], "public": false, "names": []any{"app"}, "aliases": []any{"app"}, "tags": []any{"v1", "default"},
	}
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("requested (-want +got):\n%s", diff)
	}
	if status, _, _ := s.call(t, "GET", build+"/status", "", 200); status["status"] != "waiting" {
		t.Errorf("before the start it is %v", status["status"])
	}
	hash := strings.Repeat("ab", 32)
	link, _, _ := s.call(t, "GET", template+"/files/"+hash, "", 201)
	at, _ := link["url"].(string)
	if link["present"] != false || !strings.HasPrefix(at, s.url+"/") {
		t.Errorf("files are uploaded to %v", link)
	}
	put(t, at, "an archive", 204)
	put(t, strings.Replace(at, hash, strings.Repeat("cd", 32), 1), "another", 401)
	put(t, strings.Replace(at, "token=", "token=x", 1), "another", 401)
	put(t, strings.Split(at, "?")[0], "another", 401)
	if got := s.agent.BuildFiles(s.caller.Team, hash); string(got) != "an archive" {
		t.Errorf("the host has %q", got)
	}
	if link, _, _ = s.call(t, "GET", template+"/files/"+hash, "", 201); link["present"] != true {
		t.Errorf("after the upload: %v", link)
	}
	start := "/v2" + build
	s.call(t, "POST", start, `{"fromImage":"e2bdev/base","steps":[{"type":"WAIT","args":[]}]}`, 400)
	s.call(t, "POST", start, `{"fromImage":"e2bdev/base","force":false,"startCmd":"serve","steps":[
		{"type":"COPY","args":["a","/b","","0000"],"filesHash":"`+hash+`","force":false,"forceUpload":true},{"type":"RUN","args":["true","root"]},
		{"type":"ENV","args":["A","$B"]},{"type":"WORKDIR","args":["/srv"]},{"type":"USER","args":["user"]}]}`, 202)
	status := s.end(t, build)
	if entries, _ := status["logEntries"].([]any); status["status"] != "ready" || len(entries) != 2 {
		t.Errorf("the build has ended as %v", status)
	}
	s.call(t, "POST", start, `{"fromImage":"e2bdev/base"}`, 409)
	for _, name := range []string{"app", "app:v1", "app:default"} {
		sandbox, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"`+name+`"}`, 201)
		info, _, _ := s.call(t, "GET", "/sandboxes/"+sandbox["sandboxID"].(string), "", 200)
		if info["memoryMB"] != 512.0 || info["cpuCount"] != 2.0 {
			t.Errorf("a sandbox of %s has %v", name, info)
		}
	}
	s.call(t, "GET", "/templates/app:v2/builds/"+made["buildID"].(string)+"/status", "", 404)
}

// tags returns the builds of a template's tags.
func (s *surface) tags(t *testing.T, name string) map[string]any {
	t.Helper()
	_, list, _ := s.call(t, "GET", "/templates/"+name+"/tags", "", 200)
	out := map[string]any{}
	for _, tag := range list {
		out[tag.(map[string]any)["tag"].(string)] = tag.(map[string]any)["buildID"]
	}
	return out
}

// TestTags: a build lives as long as a tag refers to it.
func TestTags(t *testing.T) {
	s := newSurface(t)
	made := map[string]any{}
	for _, name := range []string{"one", "two"} {
		_, build, requested := s.request(t, `{"name":"app","tags":["`+name+`"]}`)
		s.call(t, "POST", "/v2"+build, `{}`, 202)
		s.end(t, build)
		made[name] = requested["buildID"]
	}
	got, _, _ := s.call(t, "POST", "/templates/tags", `{"target":"app:one","tags":["prod","default"]}`, 201)
	if diff := cmp.Diff(map[string]any{"tags": []any{"prod", "default"}, "buildID": made["one"]}, got); diff != "" {
		t.Errorf("assigned (-want +got):\n%s", diff)
	}
	s.call(t, "POST", "/templates/tags", `{"target":"app:none","tags":["x"]}`, 404)
	s.call(t, "POST", "/templates/tags", `{"target":"app:one","tags":["a/b"]}`, 400)
	s.call(t, "DELETE", "/templates/tags", `{"name":"app","tags":["one"]}`, 204)
	s.call(t, "DELETE", "/templates/tags", `{"name":"app","tags":["one"]}`, 404)
	s.call(t, "DELETE", "/templates/app:default", "", 204)
	if diff := cmp.Diff(map[string]any{"two": made["two"], "prod": made["one"]}, s.tags(t, "app")); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"app:prod"}`, 201)
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"app:one"}`, 404)
	s.call(t, "POST", "/templates/tags", `{"target":"app:two","tags":["prod"]}`, 201) // the last one of the first build
	if diff := cmp.Diff(map[string]any{"two": made["two"], "prod": made["two"]}, s.tags(t, "app")); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if _, list, _ := s.call(t, "GET", "/templates", "", 200); len(list) != 3 { // with the base
		t.Errorf("the templates are %v", list)
	}
}

// ids returns the builds of assignments.
func ids(list any) []any {
	out := []any{}
	for _, a := range list.([]any) {
		out = append(out, a.(map[string]any)["buildId"])
	}
	return out
}

// TestTagHistory: which builds tags have referred to, in pages.
func TestTagHistory(t *testing.T) {
	s := newSurface(t)
	made := map[string]any{}
	for _, name := range []string{"one", "two"} {
		_, build, requested := s.request(t, `{"name":"app","tags":["`+name+`"]}`)
		s.call(t, "POST", "/v2"+build, `{}`, 202)
		s.end(t, build)
		made[name] = requested["buildID"]
	}
	for _, target := range []string{"one", "two", "one"} {
		s.call(t, "POST", "/templates/tags", `{"target":"app:`+target+`","tags":["default"]}`, 201)
	}
	history, _, _ := s.call(t, "GET", "/templates/app/tags/default/assignments", "", 200)
	if diff := cmp.Diff([]any{made["one"], made["two"], made["one"]}, ids(history["data"])); diff != "" || history["nextCursor"] != nil {
		t.Errorf("the next page is %v, assignments (-want +got):\n%s", history["nextCursor"], diff)
	}
	newest := history["data"].([]any)[0].(map[string]any)
	if timeOf(t, newest["buildFinishedAt"]).After(timeOf(t, newest["assignedAt"])) || timeOf(t, newest["buildCreatedAt"]).After(timeOf(t, newest["buildFinishedAt"])) {
		t.Errorf("the times of %v", newest)
	}
	page, _, _ := s.call(t, "GET", "/templates/app/tags/default/assignments?limit=2", "", 200)
	rest, _, _ := s.call(t, "GET", "/templates/app/tags/default/assignments?cursor="+page["nextCursor"].(string), "", 200)
	if diff := cmp.Diff(history["data"], append(page["data"].([]any), rest["data"].([]any)...)); diff != "" {
		t.Errorf("in pages (-want +got):\n%s", diff)
	}
	for query, want := range map[string]string{"": "default two one", "?sort=name_asc": "default one two", "?sort=name_desc": "two one default", "?sort=latest_asc": "one two default", "?search=O": "two one", "?search=x": ""} {
		if got := s.groups(t, query, "tagsLimit=2"); got != want {
			t.Errorf("groups%s: %s, want %s", query, got, want)
		}
	}
	groups, _, _ := s.call(t, "GET", "/templates/app/tags/groups?assignmentLimit=2", "", 200)
	group := groups["tags"].([]any)[0].(map[string]any)
	if diff := cmp.Diff([]any{made["one"], made["two"]}, ids(group["assignments"])); diff != "" || group["hasMore"] != true {
		t.Errorf("%v (-want +got):\n%s", group, diff)
	}
	// The history of a tag ends with it.
	s.call(t, "DELETE", "/templates/tags", `{"name":"app","tags":["default"]}`, 204)
	if got := s.groups(t, "?sort=name_asc", "tagsLimit=1"); got != "one two" {
		t.Errorf("without the tag: %s", got)
	}
	s.call(t, "POST", "/templates/tags", `{"target":"app:two","tags":["default"]}`, 201)
	if again, _, _ := s.call(t, "GET", "/templates/app/tags/default/assignments", "", 200); len(again["data"].([]any)) != 1 {
		t.Errorf("a tag that is new again has %v", again)
	}
	none, _, _ := s.call(t, "GET", "/templates/app/tags/none/assignments", "", 200)
	base, _, _ := s.call(t, "GET", "/templates/base/tags/groups", "", 200)
	if diff := cmp.Diff(map[string]any{"data": []any{}, "nextCursor": nil}, none) + cmp.Diff(map[string]any{"tags": []any{}, "nextCursor": nil}, base); diff != "" {
		t.Error(diff)
	}
	for path, want := range map[string]int{
		"groups?sort=x": 400, "groups?tagsCursor=x": 400, "groups?tagsLimit=0": 400, "groups?assignmentLimit=101": 400, "one/assignments?cursor=x": 400, "one/assignments?limit=0": 400,
		"%00/assignments": 404, "one/assignments?cursor=-1": 400,
	} {
		s.call(t, "GET", "/templates/app/tags/"+path, "", want)
	}
	s.another(t)
	s.call(t, "GET", "/templates/app/tags/groups", "", 404)
	s.call(t, "GET", "/templates/app/tags/one/assignments", "", 404)
}

// groups returns the tags of all pages.
func (s *surface) groups(t *testing.T, query, limit string) string {
	t.Helper()
	if query == "" {
		query = "?"
	}
	var tags []string
	for cursor := ""; ; {
		page, _, _ := s.call(t, "GET", "/templates/app/tags/groups"+query+"&"+limit+"&tagsCursor="+cursor, "", 200)
		for _, tag := range page["tags"].([]any) {
			tags = append(tags, tag.(map[string]any)["tag"].(string))
		}
		next, more := page["nextCursor"].(string)
		if cursor = next; !more {
			return strings.Join(tags, " ")
		}
	}
}

// another has all further calls made by another team.
func (s *surface) another(t *testing.T) {
	t.Helper()
	other, err := s.service.EnsureTeam(t.Context(), "other")
	testkit.Must(t, err)
	_, s.key, err = s.service.CreateKey(t.Context(), service.Caller{Team: other}, service.NewKey{Name: "other"})
	testkit.Must(t, err)
}

// TestBuildLogs reads a log by times, which identify its lines.
func TestBuildLogs(t *testing.T) {
	s := newSurface(t)
	_, build, _ := s.request(t, `{"name":"app"}`)
	if empty, _, _ := s.call(t, "GET", build+"/logs", "", 200); len(empty["logs"].([]any)) != 0 {
		t.Errorf("before the start: %v", empty)
	}
	s.call(t, "POST", "/v2"+build, `{}`, 202)
	entries := s.end(t, build)["logEntries"].([]any)
	all, _, _ := s.call(t, "GET", build+"/logs?source=persistent&level=info", "", 200)
	if diff := cmp.Diff(entries, all["logs"], cmpopts.IgnoreMapEntries(func(key string, _ any) bool { return key == "timestamp" })); diff != "" || len(entries) < 2 {
		t.Fatalf("%d lines (-status +logs):\n%s", len(entries), diff)
	}
	lines := all["logs"].([]any)
	ms := func(i int) int64 { return timeOf(t, lines[i].(map[string]any)["timestamp"]).UnixMilli() }
	for query, want := range map[string][]any{
		"limit=1": lines[:1], "direction=backward&limit=1": lines[len(lines)-1:], "level=warn": {}, "limit=0": {},
		fmt.Sprintf("cursor=%d", ms(0)+1): lines[1:], fmt.Sprintf("cursor=%d&direction=backward", ms(1)): lines[:1],
	} {
		if got, _, _ := s.call(t, "GET", build+"/logs?"+query, "", 200); cmp.Diff(want, got["logs"]) != "" {
			t.Errorf("%s (-want +got):\n%s", query, cmp.Diff(want, got["logs"]))
		}
	}
	for _, query := range []string{"level=all", "direction=up", "limit=101", "cursor=-1", "source=x"} {
		s.call(t, "GET", build+"/logs?"+query, "", 400)
	}
	s.call(t, "GET", "/templates/app/builds/"+noBuild+"/logs", "", 404)
	s.another(t)
	s.call(t, "GET", build+"/logs", "", 404)
}

// TestBuildFails: clients find the step by its number, and the reason as the agent told it.
func TestBuildFails(t *testing.T) {
	s := newSurface(t)
	_, build, _ := s.request(t, `{"name":"bad"}`)
	s.call(t, "POST", "/v2"+build, `{"startCmd":"`+failing+`"}`, 202)
	status := s.end(t, build)
	if diff := cmp.Diff(map[string]any{"message": failure1, "step": "finalize"}, status["reason"]); diff != "" {
		t.Errorf("the reason (-want +got):\n%s", diff)
	}
	_, build, _ = s.request(t, `{"name":"bad"}`)
	s.call(t, "DELETE", "/templates/bad", "", 204)
	s.call(t, "GET", build+"/status", "", 404)
	s.call(t, "POST", "/v2"+build, `{}`, 404)
}

func TestBuildRefusals(t *testing.T) {
	s := newSurface(t)
	for _, body := range []string{
		`{}`, `{"name":"base"}`, `{"name":"a/b"}`, `{"name":"a","cpuCount":0}`, `{"name":"a","memoryMB":1}`, `{"name":"a","tags":["b c"]}`,
		`{"name":"a","minFreeDiskMb":30000}`, `{"name":"a:` + strings.Repeat("x", 100) + `"}`,
	} {
		s.call(t, "POST", "/v3/templates", body, 400)
	}
	template, build, _ := s.request(t, `{"name":"a"}`)
	for body, want := range map[string]int{
		`{"fromImage":"x","fromTemplate":"y"}`: 400, `{"fromTemplate":"none"}`: 404,
		`{"fromImage":"x","fromImageRegistry":{"type":"aws"}}`: 400, `{"fromImageRegistry":{"type":"registry","username":"u","password":"p"}}`: 400,
		`{"steps":[{"type":"RUN"}]}`: 400, `{"steps":[{"type":"COPY","args":["../a","b"],"filesHash":"x"}]}`: 400, `{"steps":{}}`: 400,
	} {
		s.call(t, "POST", "/v2"+build, body, want)
	}
	s.call(t, "POST", "/v2/templates/a/builds/x", `{}`, 400)
	s.call(t, "POST", "/v2/templates/a/builds/"+noBuild, `{}`, 404)
	s.call(t, "GET", template+"/files/x", "", 400)
	s.call(t, "GET", build+"/status?logsOffset=-1", "", 400)
	s.another(t)
	s.call(t, "GET", build+"/status", "", 404)
	s.call(t, "POST", "/v2"+build, `{}`, 404)
}

// TestDroppedLines: clients count entries, so that dropped lines need one each.
func TestDroppedLines(t *testing.T) {
	t.Parallel()
	lines := []service.LogLine{{Number: 5, Text: "five"}, {Number: 6, Text: "six"}}
	for limit, want := range map[int]string{100: "- - five six", 3: "- - five", 1: "-"} {
		var got []string
		for _, entry := range entriesOf(lines, 3, limit) {
			got = append(got, strings.Replace(entry.Message, "(a line that was dropped)", "-", 1))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("up to %d: %s", limit, text)
		}
	}
}

func TestBuildUUID(t *testing.T) {
	t.Parallel()
	for _, id := range []wrenn.BuildID{"t00000000000000000000", "tzzzzzzzzzzzzzzzzzzzz", "t0000000000000000000z", wrenn.NewBuildID()} {
		uuid := uuidOf(id)
		if back, err := buildIDOf(strings.ToUpper(uuid)); err != nil || back != id || len(uuid) != 36 || uuid[14] != '8' || !strings.ContainsRune("89ab", rune(uuid[19])) {
			t.Errorf("%s is %s, which is %s, %v", id, uuid, back, err)
		}
	}
	for _, bad := range []string{"", "x", noBuild, "ffffffff-ffff-8fff-bfff-ffffffffffff", fmt.Sprintf("%036d", 4)} {
		if id, err := buildIDOf(bad); err == nil {
			t.Errorf("%q is %s", bad, id)
		}
	}
}
