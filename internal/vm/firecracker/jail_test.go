package firecracker

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/vm"
)

func listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func TestDial(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, root string)
		bad  bool
	}{
		{name: "a socket", make: func(t *testing.T, root string) {
			t.Helper()
			t.Chdir(root) // its own path is too long for an address
			listen(t, nameSocket)
		}},
		{name: "a link to another socket", bad: true, make: func(t *testing.T, root string) {
			t.Helper()
			t.Chdir(t.TempDir())
			listen(t, "other")
			other, _ := filepath.Abs("other")
			if err := os.Symlink(other, filepath.Join(root, nameSocket)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "a file", bad: true, make: func(t *testing.T, root string) {
			t.Helper()
			write(t, filepath.Join(root, nameSocket), "")
		}},
		{name: "nothing", bad: true, make: func(*testing.T, string) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
			if err := os.Mkdir(root, 0o700); err != nil {
				t.Fatal(err)
			}
			c.make(t, root)
			conn, err := (&jail{root: root}).dial(t.Context())
			if err == nil {
				conn.Close()
			}
			if (err != nil) != c.bad {
				t.Errorf("dial() = %v", err)
			}
		})
	}
}

// Without the jailer the VMM finds its files through links.
func TestDirectoryWithoutJailer(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	disk := filepath.Join(elsewhere, "disk")
	write(t, disk, "content")
	c := (&Driver{}).newJail(vm.Spec{Dir: dir})
	if err := c.populate([]file{{name: diskName(0), path: disk}}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "disk0")); string(data) != "content" {
		t.Errorf("disk0 = %q, %v", data, err)
	}
	for range 2 {
		if err := c.clear(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if data, err := os.ReadFile(disk); string(data) != "content" {
		t.Errorf("the disk is %q, %v after the directory was cleared", data, err)
	}
}
