//go:build root

package modules

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstall runs the host's depmod in a root without other programs.
func TestInstall(t *testing.T) {
	busybox, err := exec.LookPath("busybox") // a static one
	if err != nil {
		t.Skip("no busybox here to be the root's depmod")
	}
	root := t.TempDir()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "sbin/depmod"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	tree := kernelTree(t, "lib/modules", map[string][]byte{
		"net/bridge/bridge.ko":                      module(t, "depends=stp", "alias=rtnl-link-bridge"),
		"net/802/stp.ko":                            module(t, "depends="),
		"drivers/net/ethernet/intel/e1000/e1000.ko": module(t, "depends="),
	}, "kernel/fs/ext4/ext4.ko")

	version, err := Install(t.Context(), tree, root)
	if err != nil || version != "6.1.0-test" {
		t.Fatalf("Install() = %q, %v", version, err)
	}
	dep, err := os.ReadFile(filepath.Join(root, "usr/lib/modules", version, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(dep), "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko") {
		t.Errorf("modules.dep is\n%s", dep)
	}
	if strings.Contains(string(dep), "e1000") {
		t.Errorf("the driver of an Ethernet card was installed:\n%s", dep)
	}
}
