package e2b

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn/internal/controlplane/service"
)

func TestVolumes(t *testing.T) {
	s := newSurface(t)
	_, list, _ := s.call(t, "GET", "/volumes", "", 200)
	if list == nil || len(list) > 0 {
		t.Errorf("no volumes are %v", list)
	}
	made, _, _ := s.call(t, "POST", "/volumes", `{"name":"data"}`, 201)
	id, _ := made["volumeID"].(string)
	if token, ok := made["token"]; made["name"] != "data" || token != "" || !ok {
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

// TestVolumeContent is answered plainly, also with a token that is no key.
func TestVolumeContent(t *testing.T) {
	s := newSurface(t)
	s.header = map[string]string{"X-Api-Key": "", "Authorization": "Bearer token"}
	for method, path := range map[string]string{"GET": "dir?path=%2F", "POST": "dir?path=%2Fa", "PUT": "file?path=%2Fa", "PATCH": "path?path=%2Fa"} {
		s.call(t, method, "/volumecontent/v1/"+path, "", 501)
	}
}
