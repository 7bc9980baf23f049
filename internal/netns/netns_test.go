package netns

import "testing"

func TestNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../x", "-x", "a b", "a\n", string(make([]byte, 64))} {
		if _, err := Create(name); err == nil {
			t.Errorf("Create(%q) worked", name)
		}
		if err := Delete(name); err == nil {
			t.Errorf("Delete(%q) worked", name)
		}
	}
}
