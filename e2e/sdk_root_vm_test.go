//go:build root && vm

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

// sdk is a published version of an E2B SDK, or of E2B's command line.
type sdk struct{ language, version string }

// sdks are the versions that are tested with each change; make sdk-matrix calls every
// method of more of them.
var (
	sdks = []sdk{{"python", "2.63.0"}, {"python", "2.25.1"}, {"javascript", "2.51.0"}, {"cli", "2.19.0"}}
	// byDomain are those that are tested by a domain with TLS, too.
	byDomain = []sdk{{"python", "2.63.0"}, {"javascript", "2.51.0"}}
)

// TestSDKs runs programs of users of E2B, with its own SDKs, against all of Wrenn.
func TestSDKs(t *testing.T) {
	domain := fmt.Sprintf("sandbox.localhost:%d", freePort(t))
	e := up(t, stateDir(t), "--on-exit", "destroy", "--domain", domain)
	defer e.stop(t)
	authority := filepath.Join(e.dir, "state/tls/sandbox.localhost/ca.pem")
	url := regexp.MustCompile(`Wrenn serves at (\S+)`).FindStringSubmatch(e.out.String())[1]
	_, key, _ := strings.Cut(e.key(t), "'")
	key, _, _ = strings.Cut(key, "'")
	for _, s := range sdks {
		t.Run(s.language+" "+s.version, func(t *testing.T) {
			s.run(t, "E2B_API_URL="+url, "E2B_SANDBOX_URL="+url, "E2B_API_KEY="+key)
		})
	}
	for _, s := range byDomain {
		t.Run("by a domain: "+s.language+" "+s.version, func(t *testing.T) {
			// As the SDKs look it up: Go's own resolver asks no modules of the C library.
			if err := exec.CommandContext(t.Context(), "getent", "hosts", "api.sandbox.localhost").Run(); err != nil {
				if os.Getenv("WRENN_CI") == "1" {
					t.Fatal(err)
				}
				t.Skipf("install libnss-myhostname for names below localhost: %v", err)
			}
			s.run(t, "E2B_DOMAIN="+domain, "E2B_API_KEY="+key, "SSL_CERT_FILE="+authority, "NODE_EXTRA_CA_CERTS="+authority)
		})
	}
}

// run runs the program with the SDK in an environment.
func (s sdk) run(t *testing.T, env ...string) {
	t.Helper()
	cmd := s.program(t)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "ok") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// freePort returns a port on which nothing listens now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// program installs the SDK, once for all runs, and returns the program that uses it.
func (s sdk) program(t *testing.T) *exec.Cmd {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("../.cache/sdk", s.language+"-"+s.version))
	testkit.Must(t, err)
	smoke, err := filepath.Abs(map[string]string{"python": "sdk/smoke.py", "javascript": "sdk/smoke.mjs", "cli": "sdk/smoke.sh"}[s.language])
	testkit.Must(t, err)
	installed := filepath.Join(dir, ".installed")
	if _, err := os.Stat(installed); err != nil {
		testkit.Must(t, os.RemoveAll(dir)) // an incomplete installation
		testkit.Must(t, os.MkdirAll(dir, 0o755))
		if s.language == "python" {
			install(t, dir, "python3", "-m", "venv", ".")
			install(t, dir, "bin/pip", "install", "--quiet", "--disable-pip-version-check", "e2b=="+s.version)
		} else {
			name := map[string]string{"javascript": "e2b", "cli": "@e2b/cli"}[s.language]
			install(t, dir, "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", name+"@"+s.version)
		}
		testkit.Must(t, os.WriteFile(installed, nil, 0o600))
	}
	cmd := exec.CommandContext(t.Context(), "node", smoke, "e2b")
	switch s.language {
	case "python":
		cmd = exec.CommandContext(t.Context(), filepath.Join(dir, "bin/python"), smoke)
	case "cli":
		cmd = exec.CommandContext(t.Context(), "bash", smoke, filepath.Join(dir, "node_modules/@e2b/cli/dist/index.js"))
	}
	cmd.Dir = dir
	return cmd
}

// install runs a step of an installation. Without the program that it needs it
// skips the test, or fails it where nothing may be skipped.
func install(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	path := name
	if strings.Contains(name, "/") {
		path = filepath.Join(dir, name)
	} else if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("WRENN_CI") == "1" {
			t.Fatal(err)
		}
		t.Skipf("E2B's SDKs are installed from their registries: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
