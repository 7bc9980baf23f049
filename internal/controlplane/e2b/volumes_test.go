package e2b

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/controlplane/service"
)

func TestVolumes(t *testing.T) {
	s := newSurface(t)
	_, list, _ := s.call(t, "GET", "/volumes", "", 200)
	if list == nil || len(list) > 0 {
		t.Errorf("no volumes are %v", list)
	}
	made, _, _ := s.call(t, "POST", "/volumes", `{"name":"data"}`, 201)
	id, _ := made["volumeID"].(string)
	if token, ok := made["token"]; made["name"] != "data" || token == "" || !ok {
		t.Errorf("created %v", made)
	}
	s.call(t, "POST", "/volumes", `{"name":"data"}`, 409)
	s.call(t, "POST", "/volumes", `{"name":"a/b"}`, 400)
	s.call(t, "POST", "/volumes", `{}`, 400)
	got, _, _ := s.call(t, "GET", "/volumes/"+id, "", 200)
	_, list, _ = s.call(t, "GET", "/volumes", "", 200)
	if diff := cmp.Diff(made, got) + cmp.Diff([]any{map[string]any{"volumeID": id, "name": "data"}}, list); diff != "" {
		t.Error(diff)
	}

	mounts := []any{map[string]any{"name": "data", "path": "/data"}}
	sandbox, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"data","path":"/data"}]}`, 201)
	at := "/sandboxes/" + sandbox["sandboxID"].(string)
	detail, _, _ := s.call(t, "GET", at, "", 200)
	_, list, _ = s.call(t, "GET", "/v2/sandboxes", "", 200)
	if diff := cmp.Diff(mounts, detail["volumeMounts"]) + cmp.Diff(mounts, list[0].(map[string]any)["volumeMounts"]); diff != "" {
		t.Errorf("mounts of the sandbox (-want +got):\n%s", diff)
	}
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"other","path":"/data"}]}`, 404)
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"data","path":"data"}]}`, 400)
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"data"}]}`, 400)
	s.call(t, "DELETE", "/volumes/"+id, "", 409)
	s.call(t, "DELETE", at, "", 204)
	s.call(t, "DELETE", "/volumes/"+id, "", 204)
	s.call(t, "DELETE", "/volumes/"+id, "", 404)
	s.call(t, "GET", "/volumes/"+id, "", 404)
}

// TestVolumesOfAnotherTeam are not found, by name or id.
func TestVolumesOfAnotherTeam(t *testing.T) {
	s := newSurface(t)
	team, err := s.service.EnsureTeam(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.service.CreateVolume(t.Context(), service.Caller{Team: team}, service.CreateVolume{Name: "theirs"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"theirs", string(v.ID)} {
		s.call(t, "GET", "/volumes/"+name, "", 404)
		s.call(t, "DELETE", "/volumes/"+name, "", 404)
		s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","volumeMounts":[{"name":"`+name+`","path":"/data"}]}`, 404)
	}
}

// content has calls made with the token of a new volume, and returns its path.
func (s *surface) content(t *testing.T, name string) string {
	t.Helper()
	made, _, _ := s.call(t, "POST", "/volumes", `{"name":"`+name+`"}`, 201)
	s.header = map[string]string{"X-Api-Key": "", "Authorization": "Bearer " + made["token"].(string)}
	return "/volumecontent/" + made["volumeID"].(string)
}

// TestVolumeContent does what the SDKs' Volume does, with the volume's token.
func TestVolumeContent(t *testing.T) {
	s := newSurface(t)
	at := s.content(t, "data")
	if _, list, _ := s.call(t, "GET", at+"/dir?path=%2F", "", 200); list == nil || len(list) > 0 {
		t.Errorf("an empty volume has %v", list)
	}
	s.header["Content-Type"] = "application/octet-stream"
	big := strings.Repeat("0123456789abcdef", 1<<18) // longer than a body of JSON may be
	s.call(t, "PUT", at+"/file?path=big", big, 201)
	if got, _, _ := s.call(t, "GET", at+"/file?path=%2Fbig", "", 200); got["content"] != big {
		t.Errorf("read %d bytes, want %d", len(got["content"].(string)), len(big))
	}
	file, _, _ := s.call(t, "PUT", at+"/file?path=%2Fa%2Fb%2Fone.txt&force=true&mode=384", "one", 201)
	if file["name"] != "one.txt" || file["path"] != "/a/b/one.txt" || file["type"] != "file" || file["size"] != 3.0 || file["mode"] != 384.0 {
		t.Errorf("wrote %v", file)
	}
	s.call(t, "PUT", at+"/file?path=%2Fa%2Fb%2Fone.txt&force=false", "two", 409)
	s.call(t, "PUT", at+"/file?path=%2Fnone%2Fone.txt", "two", 404)
	s.call(t, "PUT", at+"/file?path=%2Fa", "two", 400)
	again, _, _ := s.call(t, "PUT", at+"/file?path=%2Fa%2Fb%2Fone.txt", "replaced", 201)
	if again["mode"] != 384.0 || again["size"] != 8.0 {
		t.Errorf("replaced %v", again)
	}
	delete(s.header, "Content-Type")
	s.call(t, "POST", at+"/dir?path=%2Fa", "", 409)
	s.call(t, "POST", at+"/dir?path=%2Fa&force=true", "", 201)
	s.call(t, "POST", at+"/dir?path=%2Fx%2Fy", "", 404)
	dir, _, _ := s.call(t, "POST", at+"/dir?path=%2Fx%2Fy&force=true&mode=448", "", 201)
	if dir["type"] != "directory" || dir["mode"] != 448.0 {
		t.Errorf("made %v", dir)
	}
	changed, _, _ := s.call(t, "PATCH", at+"/path?path=%2Fx%2Fy", `{"mode":493}`, 200)
	got, _, _ := s.call(t, "GET", at+"/path?path=%2Fx%2Fy", "", 200)
	if diff := cmp.Diff(changed, got); diff != "" || got["mode"] != 493.0 {
		t.Errorf("changed to %v (-changed +got):\n%s", got["mode"], diff)
	}
	for query, want := range map[string]string{"": "/a /big /x", "&depth=2": "/a /a/b /big /x /x/y", "&depth=9": "/a /a/b /a/b/one.txt /big /x /x/y"} {
		_, list, _ := s.call(t, "GET", at+"/dir?path=%2F"+query, "", 200)
		var paths []string
		for _, e := range list {
			paths = append(paths, e.(map[string]any)["path"].(string))
		}
		if got := strings.Join(paths, " "); got != want {
			t.Errorf("depth %q lists %s, want %s", query, got, want)
		}
	}
	s.call(t, "DELETE", at+"/path?path=%2Fa", "", 204)
	for path, want := range map[string]int{
		"/path?path=%2Fa": 404, "/file?path=%2Fa%2Fb%2Fone.txt": 404, "/dir?path=%2Fa": 404, "/file?path=%2Fx": 400, "/dir?path=%2Fbig": 400, "/path": 400,
		"/dir?path=%2F&depth=0": 400, "/path?path=%00": 400, "/file?path=%2F..%2F..%2Fetc%2Fpasswd": 404, "/path?path=%2F..": 200,
	} {
		s.call(t, "GET", at+path, "", want)
	}
	s.call(t, "DELETE", at+"/path?path=%2F", "", 400)
	s.call(t, "DELETE", at+"/path?path=%2Fa", "", 404)
	s.call(t, "PATCH", at+"/path?path=%2Fx", `{"mode":4096}`, 400)
}

// TestVolumeTokens: the token of a volume is for it alone, and for its files alone.
func TestVolumeTokens(t *testing.T) {
	s := newSurface(t)
	one := s.content(t, "one")
	token := s.header
	s.call(t, "GET", "/volumes", "", 401)
	s.header = nil
	s.call(t, "GET", one+"/dir?path=%2F", "", 200) // a key of the team
	two := s.content(t, "two")
	s.call(t, "GET", two+"/dir?path=%2F", "", 200)
	s.call(t, "GET", one+"/dir?path=%2F", "", 401)
	for _, bad := range []string{"", "x", "x.y", string(s.caller.Team) + ".", strings.ToUpper(token["Authorization"][7:])} {
		s.header = map[string]string{"X-Api-Key": "", "Authorization": "Bearer " + bad}
		for method, path := range map[string]string{"GET": "/dir?path=%2F", "POST": "/dir?path=%2Fa", "PUT": "/file?path=%2Fa", "PATCH": "/path?path=%2Fa", "DELETE": "/path?path=%2Fa"} {
			s.call(t, method, one+path, "", 401)
		}
	}
	s.header = token
	s.call(t, "GET", "/volumecontent/one/dir?path=%2F", "", 401) // tokens are of ids
	s.header = nil
	s.call(t, "DELETE", "/volumes/one", "", 204)
	s.header = token
	s.call(t, "GET", one+"/dir?path=%2F", "", 404)
	s.header = nil
	s.another(t)
	s.call(t, "GET", two+"/dir?path=%2F", "", 404)
	s.call(t, "GET", two+"/file?path=%2Fa", "", 404)
}
