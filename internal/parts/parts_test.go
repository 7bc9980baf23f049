package parts

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func TestFind(t *testing.T) {
	root := t.TempDir()
	put := func(path string) string {
		path = filepath.Join(root, path)
		testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testkit.Must(t, os.WriteFile(path, nil, 0o755))
		return path
	}
	put("usr/lib/wrenn/other")
	testkit.Must(t, os.Mkdir(filepath.Join(root, "usr/lib/wrenn/directory"), 0o755))
	for _, c := range []struct{ dir, name, want string }{
		{"bin", "envd", put("bin/envd")},
		{"bin", "host-agent", put("bin/host-agent")},
		{"usr/bin", "host-agent", put("usr/bin/wrenn-host-agent")},
		{"usr/bin", "envd", put("usr/lib/wrenn/envd")},
		{"usr/bin", "stage0", ""},
		{"usr/bin", "directory", ""},
	} {
		got, err := find(filepath.Join(root, c.dir), c.name)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("find(%s, %s) = %q, %v; want %q", c.dir, c.name, got, err, c.want)
		}
	}
}
