package wrenn

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func rule(host string, headers ...Header) HeaderRule {
	n, _ := ParseNetworkName(host)
	return HeaderRule{Host: n, Headers: headers}
}

func TestHeaderRulesAreChecked(t *testing.T) {
	good := Header{Name: "Authorization", Text: "Bearer ${secrets.a}"}
	for _, test := range []struct {
		name  string
		rules []HeaderRule
		want  string
	}{
		{"good", []HeaderRule{rule("example.com", good), rule("*.example.com:8443", good, Header{Name: "x-b", Text: "${e2b.secrets.B} and text"})}, ""},
		{"no headers", []HeaderRule{rule("example.com")}, "0 headers"},
		{"twice", []HeaderRule{rule("example.com", good), rule("example.com:443", good)}, "two header rules"},
		{"header twice", []HeaderRule{rule("example.com", good, Header{Name: "authorization"})}, "two headers"},
		{"host header", []HeaderRule{rule("example.com", Header{Name: "Host", Text: "x"})}, "belongs to the connection"},
		{"name", []HeaderRule{rule("example.com", Header{Name: "a b", Text: "x"})}, "not the name of a header"},
		{"lines", []HeaderRule{rule("example.com", Header{Name: "a", Text: "x\r\ny: z"})}, "control characters"},
		{"placeholder", []HeaderRule{rule("example.com", Header{Name: "a", Text: "${secret.a}"})}, "${secrets.NAME}"},
		{"no end", []HeaderRule{rule("example.com", Header{Name: "a", Text: "${secrets.a"})}, "${secrets.NAME}"},
		{"address", []HeaderRule{rule("192.0.2.1", good)}, "neither an IPv4 address nor a name"},
	} {
		err := NetworkPolicy{Headers: test.rules}.Check()
		if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || CodeOf(err) != Invalid) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestHeaderRuleOfAHost(t *testing.T) {
	h := Header{Name: "a"}
	p := NetworkPolicy{Headers: []HeaderRule{rule("*.example.com", h), rule("*.b.example.com", h), rule("c.b.example.com:8443", h), rule("d.b.example.com", h)}}
	for _, test := range []struct {
		host string
		port uint16
		want string
	}{
		{"a.example.com", 443, "*.example.com"}, {"a.b.example.com", 443, "*.b.example.com"}, {"c.b.example.com", 8443, "c.b.example.com"},
		{"c.b.example.com", 443, "*.b.example.com"}, {"d.b.example.com", 443, "d.b.example.com"}, {"example.com", 443, ""}, {"a.example.com", 80, ""},
	} {
		got, _ := p.HeaderRule(test.host, test.port)
		if got.Host.Domain != test.want {
			t.Errorf("%s:%d: %q", test.host, test.port, got.Host.Domain)
		}
	}
	if diff := cmp.Diff([]uint16{443, 8443}, p.HeaderPorts()); diff != "" {
		t.Error(diff)
	}
}

func TestHeaderFill(t *testing.T) {
	h := Header{Name: "a", Text: "x ${secrets.Token} ${e2b.secrets.other}"}
	if text, missing := h.Fill(map[string]string{"token": "1", "other": "${secrets.token}"}); text != "x 1 ${secrets.token}" || missing != "" {
		t.Errorf("%q %q", text, missing)
	}
	if text, missing := h.Fill(map[string]string{"token": "1"}); text != "" || missing != "other" {
		t.Errorf("%q %q", text, missing)
	}
	p := NetworkPolicy{Headers: []HeaderRule{rule("example.com", h), rule("b.example.com", h)}}
	if diff := cmp.Diff([]string{"other", "token"}, p.SecretNames()); diff != "" {
		t.Error(diff)
	}
	// The form of journals and of the database is read again.
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again NetworkPolicy
	if err := json.Unmarshal(raw, &again); err != nil || !again.Equal(p) || p.Equal(NetworkPolicy{}) || p.IsZero() {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestSecretsTag(t *testing.T) {
	tag := SecretsTag(map[string]string{"a": "1", "b": "2"})
	if tag == "" || tag != SecretsTag(map[string]string{"b": "2", "a": "1"}) || tag == SecretsTag(map[string]string{"a": "1", "b": "3"}) || SecretsTag(nil) != "" {
		t.Error(tag)
	}
}
