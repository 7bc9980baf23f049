package host

import (
	"os"
	"strings"
	"testing"
)

// TestAdvice: a setting or a flag that advice names exists in the program that
// has it.
func TestAdvice(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	settings, flags := read("../../packaging/host-agent.toml"), read("../../docs/cli.md")+read("../cli/up.go")
	for _, name := range []string{"firecracker", "jailer", "kernel"} {
		advice := setting(name)
		if !strings.Contains(advice, "driver."+name+" in host-agent.toml") || !strings.Contains(settings, "\n#"+name+" = ") {
			t.Errorf("%q names a setting that packaging/host-agent.toml does not have", advice)
		}
		if !strings.Contains(advice, "wrenn up with --"+name) || !strings.Contains(flags, "\t"+strings.ToUpper(name[:1])+name[1:]+" ") {
			t.Errorf("%q names a flag that wrenn up does not have", advice)
		}
	}
}
