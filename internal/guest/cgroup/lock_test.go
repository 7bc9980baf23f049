package cgroup

import "testing"

func TestMappingOf(t *testing.T) {
	const line = "00400000-00a3c000 r-xp 00000000 fe:00 1234                       /usr/local/bin/envd\n"
	if begin, end, ok := mappingOf(line, "/usr/local/bin/envd"); !ok || begin != 0x400000 || end != 0xa3c000 {
		t.Errorf("mappingOf() = %x, %x, %v", begin, end, ok)
	}
	for _, other := range []string{"", "x", "c000000000-c000400000 rw-p 00000000 00:00 0\n", line[:20]} {
		if _, _, ok := mappingOf(other, "/usr/local/bin/envd"); ok {
			t.Errorf("%q is taken for a mapping of the file", other)
		}
	}
}
