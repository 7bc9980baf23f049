package mcpgateway

import (
	"slices"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

func TestParseConfig(t *testing.T) {
	t.Parallel()
	programs, err := parseConfig([]byte(`{
		"github/owner/some.server": {"runCmd": "node server.js", "installCmd": "npm install", "envs": {"A": "b"}},
		"filesystem": {"paths": ["/home/user"]},
		"mine": {"command": "python3", "args": ["-m", "mine"], "env": {"C": "d"}}
	}`), "/opt")
	testkit.Must(t, err)
	if len(programs) != 3 {
		t.Fatalf("got %+v", programs)
	}
	files, repository, mine := programs[0], programs[1], programs[2]
	if want := []string{"npx", "-y", "@modelcontextprotocol/server-filesystem", "/home/user"}; !slices.Equal(files.argv, want) {
		t.Errorf("filesystem runs %q", files.argv)
	}
	if repository.name != "some_server" || repository.clone != "https://github.com/owner/some.server.git" || repository.dir != "/opt/owner/some.server" ||
		repository.install != "npm install" || repository.argv[2] != "node server.js" || repository.env["A"] != "b" {
		t.Errorf("the repository is %+v", repository)
	}
	if want := []string{"python3", "-m", "mine"}; !slices.Equal(mine.argv, want) || mine.env["C"] != "d" || mine.clone != "" {
		t.Errorf("the command is %+v", mine)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`[]`:                                "no JSON object",
		`{"nothing": {}}`:                   "not in the catalog (fetch, filesystem, ",
		`{"github/owner": {"runCmd": "x"}}`: "github/OWNER/NAME",
		`{"github/../x": {"runCmd": "x"}}`:  "github/OWNER/NAME",
		`{"github/o/..": {"runCmd": "x"}}`:  "github/OWNER/NAME",
		`{"github/o/n": {}}`:                "set runCmd",
		`{"filesystem": {}}`:                "set paths",
		`{"a.b": {"command": "x"}, "a_b": {"command": "y"}}`: "another one is called a_b",
		`{"a": "` + strings.Repeat("x", maxConfig) + `"}`:    "bytes, more than",
	} {
		if _, err := parseConfig([]byte(config), "/opt"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseConfig(%.40s) = %v, want an error with %q", config, err, want)
		}
	}
}
