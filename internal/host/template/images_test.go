package template

import (
	"testing"

	"wrenn.dev"
)

func TestImages(t *testing.T) {
	for name, c := range map[string]struct {
		images  Images
		image   string
		allowed bool
	}{
		"any":            {Images{"*"}, "desktop", true},
		"none":           {Images{}, "desktop", false},
		"public":         {Images{"other", "desktop"}, "desktop", true},
		"for this team":  {Images{"desktop=b", "desktop=a"}, "desktop", true},
		"for another":    {Images{"desktop=b"}, "desktop", false},
		"another image":  {Images{"desk", "desktops"}, "desktop", false},
		"a team's trick": {Images{"desktop=a=b"}, "desktop=a", false},
	} {
		err := c.images.allow(c.image, "a")
		if (err == nil) != c.allowed || err != nil && wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	for entry, good := range map[string]bool{"*": true, "x": true, "x=y": true, "": false, "=y": false, "x=": false, "*=y": false} {
		if err := (Images{entry}).Check(); (err == nil) != good {
			t.Errorf("%q: %v", entry, err)
		}
	}
}
