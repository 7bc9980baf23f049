package certs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/testkit"
)

// TestTheDocumentedCommands runs the commands of docs/host-agent.md, and connects
// a control plane to a host with the certificates that they make.
func TestTheDocumentedCommands(t *testing.T) {
	testkit.Program(t, "openssl")
	page, err := os.ReadFile("../../docs/host-agent.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```sh\n(umask 077\nopenssl.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("the page has no commands")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", string(block[1]))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	files := func(name string) certs.Files {
		return certs.Files{
			Certificate: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key"), CA: filepath.Join(dir, "ca.crt"),
		}
	}
	host, controller := open(t, files("h2")), open(t, files("control-plane"))
	for _, address := range []string{"10.0.0.2", "h2.internal"} {
		if server, client := meet(t, host.Server(controlPlane), controller.Client(address)); server != nil || client != nil {
			t.Errorf("at %s the host says %v, the control plane %v", address, server, client)
		}
	}
	server, _ := meet(t, host.Server(controlPlane), host.Client("h2.internal"))
	says(t, "host to another host", server, "incompatible key usage")
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the authority's key: %v, %v", info, err)
	}
}
