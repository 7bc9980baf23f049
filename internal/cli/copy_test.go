package cli

import "testing"

func TestParseRemote(t *testing.T) {
	const id = "i7hq2m9x4kd81ncvb3t5z"
	for _, path := range []string{"", "/a", "a:b", "/a\nb", "\n", "/a\x1b[2Jb\r\t", "/a\xff"} {
		if got, ok := parseRemote(id + ":" + path); !ok || got != (remote{id, path}) {
			t.Errorf("parseRemote(%q) = %+v, %t", path, got, ok)
		}
	}
	for _, name := range []string{"/a", "./" + id + ":x", id, "x\n" + id + ":/a"} {
		if got, ok := parseRemote(name); ok {
			t.Errorf("parseRemote(%q) = %+v, want a path here", name, got)
		}
	}
}
