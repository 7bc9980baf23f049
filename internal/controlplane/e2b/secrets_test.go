package e2b

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSecrets does what the SDKs' Secret does. No answer has a value.
func TestSecrets(t *testing.T) {
	s := newSurface(t)
	if _, list, _ := s.call(t, "GET", "/secrets", "", 200); list == nil || len(list) > 0 {
		t.Errorf("no secrets are %v", list)
	}
	made, _, _ := s.call(t, "POST", "/secrets", `{"name":"Api-Key","value":"hidden","metadata":{"for":"ci"}}`, 201)
	id, _ := made["secretID"].(string)
	if made["name"] != "api-key" || made["currentVersion"] != 1.0 || cmp.Diff(map[string]any{"for": "ci"}, made["metadata"]) != "" || !strings.HasPrefix(id, "sec_") {
		t.Errorf("created %v", made)
	}
	for _, name := range []string{"api-key", "API-KEY", id} {
		if got, _, _ := s.call(t, "GET", "/secrets/"+name, "", 200); cmp.Diff(made, got) != "" {
			t.Errorf("%s (-created +got):\n%s", name, cmp.Diff(made, got))
		}
	}
	s.call(t, "POST", "/secrets", `{"name":"API-key","value":"hidden"}`, 409)
	changed, _, _ := s.call(t, "POST", "/secrets/api-key", `{"value":"hidden2"}`, 200)
	if changed["currentVersion"] != 2.0 || cmp.Diff(made["metadata"], changed["metadata"]) != "" || changed["secretID"] != id {
		t.Errorf("updated %v", changed)
	}
	if cleared, _, _ := s.call(t, "POST", "/secrets/"+id, `{"value":"hidden2","metadata":{}}`, 200); cmp.Diff(map[string]any{}, cleared["metadata"]) != "" {
		t.Errorf("cleared %v", cleared)
	}
	if value, version, err := s.service.SecretValue(t.Context(), s.caller.Team, "api-key"); err != nil || string(value) != "hidden2" || version != 3 {
		t.Errorf("the value is %q of version %d, %v", value, version, err)
	}
	for _, name := range []string{"b", "ü", "a"} {
		s.call(t, "POST", "/secrets", `{"name":"`+name+`","value":"x"}`, 201)
	}
	var names []string
	for token := ""; ; {
		_, list, h := s.call(t, "GET", "/secrets?limit=1&nextToken="+url.QueryEscape(token), "", 200)
		names = append(names, list[0].(map[string]any)["name"].(string))
		if token = h.Get("X-Next-Token"); token == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "a api-key b ü" {
		t.Errorf("listed %s", got)
	}
	for body, want := range map[string]int{
		`{}`: 400, `{"name":"x"}`: 400, `{"name":"x","value":""}`: 400, `{"name":"","value":"x"}`: 400, `{"name":"sec_x","value":"x"}`: 400, `{"name":"a{b","value":"x"}`: 400,
		`{"name":"x","value":1}`: 400, `{"name":"x","value":"` + strings.Repeat("ü", 17000) + `"}`: 400, `{"name":"x\u0000","value":"x"}`: 400,
		`{"name":"x","value":"x","metadata":{"":"x"}}`: 400, `{"name":"x","value":"x","metadata":{"k":"` + strings.Repeat("x", 1025) + `"}}`: 400,
	} {
		s.call(t, "POST", "/secrets", body, want)
	}
	s.call(t, "GET", "/secrets?nextToken=%2B", "", 400)
	for _, name := range []string{"none", "sec_00000000000000000000", "a%2Fb", "%00", strings.Repeat("x", 200)} {
		s.call(t, "GET", "/secrets/"+name, "", 404)
		s.call(t, "POST", "/secrets/"+name, `{"value":"x"}`, 404)
		s.call(t, "DELETE", "/secrets/"+name, "", 404)
	}
	key := s.key
	s.another(t)
	s.call(t, "GET", "/secrets/"+id, "", 404)
	s.call(t, "POST", "/secrets/"+id, `{"value":"x"}`, 404)
	s.call(t, "DELETE", "/secrets/api-key", "", 404)
	s.key = key
	s.call(t, "DELETE", "/secrets/api-key", "", 204)
	s.call(t, "DELETE", "/secrets/"+id, "", 404)
}
