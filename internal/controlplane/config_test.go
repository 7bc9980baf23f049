package controlplane

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// load reads text as a file, with an environment.
func load(t *testing.T, text string, environ map[string]string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control-plane.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, func(name string) string { return environ[name] })
}

const database = "[database]\nurl = \"postgres://x/y\"\n"

func TestLoadRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"unknown key":                      {"lisen = \":80\"\n" + database, "lisen"},
		"unknown key of host":              {database + "[[host]]\nid = \"a\"\nurl = \"unix:///x\"\nfast = true", "fast"},
		"no TOML":                          {"listen = ", "listen"},
		"wrong type":                       {"listen = 80\n" + database, "listen"},
		"duration":                         {"shutdown_grace = \"soon\"\n" + database, "soon"},
		"no database":                      {"", "DATABASE_URL"},
		"no port":                          {"listen = \"localhost\"\n" + database, "listen"},
		"level":                            {database + "[log]\nlevel = \"loud\"", "loud"},
		"format":                           {database + "[log]\nformat = \"xml\"", "xml"},
		"limit":                            {database + "[limits]\nvcpus = 0", "limits.vcpus"},
		"half a pair":                      {database + "[tls]\nkey = \"/x\"", "both certificate and key"},
		"missing certificate":              {database + "[tls]\nkey = \"/x\"\ncertificate = \"/x\"", "/x"},
		"domain of one label":              {database + "[domain]\nname = \"localhost\"", "two labels"},
		"domain without a name":            {database + "[domain]\nlisten = \":443\"", "domain.name"},
		"domain without a certificate":     {database + "[domain]\nname = \"a.test\"\nlisten = \":443\"", "*.a.test"},
		"domain with ACME and no secret":   {database + "[domain]\nname = \"a.test\"\nlisten = \":443\"\n[domain.acme]\nstate = \"/x\"\ndns = \"cloudflare\"", "cloudflare.token_file"},
		"domain with ACME and no listener": {database + "[domain]\nname = \"a.test\"\n[domain.acme]\nstate = \"/x\"\ndns = \"cloudflare\"", "it needs listen"},
		"domain with ACME of an unknown provider":         {database + "[domain]\nname = \"a.test\"\nlisten = \":443\"\n[domain.acme]\nstate = \"/x\"\ndns = \"x\"", "use cloudflare, rfc2136 or exec"},
		"domain with a certificate and nowhere to use it": {database + "[domain]\nname = \"a.test\"\nkey = \"/x\"\ncertificate = \"/x\"", "/x"},
		"id of a host":      {database + "[[host]]\nid = \"A\"\nurl = \"unix:///x\"", "id"},
		"two hosts alike":   {database + strings.Repeat("[[host]]\nid = \"a\"\nurl = \"unix:///x\"\n", 2), "same id"},
		"API in the clear":  {"listen = \":8080\"\n" + database, "plain_http"},
		"API of a LAN":      {"listen = \"10.0.0.2:8080\"\n" + database, "plain_http"},
		"host in the clear": {database + "[[host]]\nid = \"a\"\nurl = \"http://10.0.0.2:1\"", "https"},
		"host without mTLS": {database + "[[host]]\nid = \"a\"\nurl = \"https://10.0.0.2:1\"", "ca, certificate and key"},
		"all at once":       {"lisen = \"x\"\n" + database + "[limits]\nvcpus = 0\n[[host]]\nid = \"A\"\nurl = \"unix:///x\"\n[[host]]\nid = \"b\"\nurl = \"ftp://x\"", "ftp"},
		"host of no scheme": {database + "[[host]]\nid = \"a\"\nurl = \"10.0.0.2:1\"", "url"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := load(t, c.text, nil); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Load() = %v, want one about %q", err, c.says)
			}
		})
	}
}

func TestEnvironmentWins(t *testing.T) {
	c, err := load(t, "listen = \"1.2.3.4:1\"\nplain_http = true\n"+database+"[[host]]\nid = \"a\"\nurl = \"unix:///x\"", map[string]string{
		"DATABASE_URL": "postgres://other/z", "CP_LISTEN_ADDR": ":8080", "CP_HOST_AGENT_ADDR": "http://localhost:50051",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Listen, want.PlainHTTP, want.Database.URL = ":8080", true, "postgres://other/z"
	want.Hosts = []Host{{ID: "default", URL: "http://localhost:50051"}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("Load() (-want +got):\n%s", diff)
	}
}

// TestPrintedConfigurationIsOne: the output of --check-config is a file with the same meaning.
func TestPrintedConfigurationIsOne(t *testing.T) {
	c, err := load(t, database+"[[host]]\nid = \"a\"\nurl = \"unix:///x\"", nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := load(t, c.String(), nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, c)
	}
	if diff := cmp.Diff(c, again); diff != "" {
		t.Errorf("again (-want +got):\n%s", diff)
	}
}

func TestPrintedConfigurationHasNoSecret(t *testing.T) {
	for _, url := range []string{
		"postgres://me:s3cr3t@db/wrenn", "postgres://db/wrenn?user=me&password=s3cr3t", "host=db user=me password=s3cr3t", "postgres://me:s3cr3t%zz@db/",
	} {
		c := Defaults()
		c.Database.URL = url
		if text := c.String(); strings.Contains(text, "s3cr3t") {
			t.Errorf("printed:\n%s", text)
		}
	}
}

// TestPackagedFile: the packaged file loads, and its comments have the program's defaults.
func TestPackagedFile(t *testing.T) {
	text, err := os.ReadFile("../../packaging/control-plane.toml")
	if err != nil {
		t.Fatal(err)
	}
	silent, err := load(t, string(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	told := regexp.MustCompile(`(?m)^#(\w)`).ReplaceAllString(string(text), "$1")
	if lines := strings.Count(told, "\n#"); lines == strings.Count(string(text), "\n#") {
		t.Fatal("the file tells no default")
	}
	spoken, err := load(t, told, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(silent, spoken); diff != "" {
		t.Errorf("the file tells other defaults (-program +file):\n%s", diff)
	}
}
