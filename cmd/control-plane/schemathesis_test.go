//go:build schemathesis

package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestSchemathesis lets a generator that reads the documents look for faults,
// and for answers that are not in them, over the real service and database.
// scripts/schemathesis.sh starts it.
func TestSchemathesis(t *testing.T) {
	p := launch(t)
	for _, document := range []string{"openapi.yaml", "e2b.yaml"} {
		cmd := exec.CommandContext(t.Context(), "../../scripts/schemathesis.sh", p.url+"/"+document)
		cmd.Env = append(os.Environ(), "WRENN_API_KEY="+p.key)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Run(); err != nil {
			t.Errorf("schemathesis of %s: %v", document, err)
		}
	}
	if faults := regexp.MustCompile(`(?m)^.*(level=ERROR|panic).*$`).FindAllString(p.log.String(), -1); faults != nil {
		t.Errorf("the log says\n%s", strings.Join(faults, "\n"))
	}
}
