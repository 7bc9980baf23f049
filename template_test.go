package wrenn

import (
	"strings"
	"testing"
	"time"
)

func TestTemplateBuildCheck(t *testing.T) {
	for name, b := range map[string]BuildRequest{
		"the base":         {},
		"an image":         {Spec: TemplateSpec{From: TemplateSource{Image: "mine"}, Size: Size{VCPUs: 2}, ReadyTimeout: time.Hour}},
		"a container":      {Spec: TemplateSpec{From: TemplateSource{OCI: "debian:12"}}, Login: RegistryLogin{Username: "u", Password: "p"}},
		"a sandbox":        {Spec: TemplateSpec{From: TemplateSource{Sandbox: "i1"}}},
		"the longest env":  {Spec: TemplateSpec{Env: map[string]string{"A": strings.Repeat("x", 32<<10-1), "B": strings.Repeat("x", 32<<10-1)}}},
		"the longest name": {Spec: TemplateSpec{From: TemplateSource{OCI: strings.Repeat("x", 512)}, StartCmd: strings.Repeat("x", 16<<10)}},
	} {
		if err := b.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		build BuildRequest
		says  string
	}{
		"two sources":             {BuildRequest{Spec: TemplateSpec{From: TemplateSource{Image: "a", OCI: "b"}}}, "one of them"},
		"a sandbox with a size":   {BuildRequest{Spec: TemplateSpec{From: TemplateSource{Sandbox: "i1"}, Size: Size{MemoryMiB: 1}}}, "as it is"},
		"a sandbox with commands": {BuildRequest{Spec: TemplateSpec{From: TemplateSource{Sandbox: "i1"}, ReadyCmd: "true"}}, "as it is"},
		"a login for no registry": {BuildRequest{Login: RegistryLogin{Password: "p"}}, "login"},
		"a long password":         {BuildRequest{Spec: TemplateSpec{From: TemplateSource{OCI: "a"}}, Login: RegistryLogin{Password: strings.Repeat("x", 8<<10+1)}}, "password"},
		"a long image":            {BuildRequest{Spec: TemplateSpec{From: TemplateSource{Image: strings.Repeat("x", 513)}}}, "name"},
		"a long command":          {BuildRequest{Spec: TemplateSpec{StartCmd: strings.Repeat("x", 16<<10+1)}}, "command"},
		"a command with a NUL":    {BuildRequest{Spec: TemplateSpec{ReadyCmd: "a\x00"}}, "command"},
		"too patient":             {BuildRequest{Spec: TemplateSpec{ReadyTimeout: time.Hour + 1}}, "ready"},
		"too many variables":      {BuildRequest{Spec: TemplateSpec{Env: map[string]string{"A": strings.Repeat("x", 32<<10-1), "B": strings.Repeat("x", 32<<10)}}}, "together"},
		"no name of a variable":   {BuildRequest{Spec: TemplateSpec{Env: map[string]string{"A=B": ""}}}, "variable"},
	} {
		if err := c.build.Check(); CodeOf(err) != Invalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want Invalid and %q", name, err, c.says)
		}
	}
}
