package template

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for name, tt := range map[string]struct {
		writes []string
		want   []string
	}{
		"lines":             {[]string{"a\nb\n"}, []string{"a", "b"}},
		"pieces":            {[]string{"a", "b\nc", "\n"}, []string{"ab", "c"}},
		"no end":            {[]string{"a\nb"}, []string{"a", "b"}},
		"empty lines":       {[]string{"\n\n"}, []string{"", ""}},
		"too long":          {[]string{long + "yz\n"}, []string{long, "yz"}},
		"as long as may be": {[]string{long + "\n", "a\n"}, []string{long, "a"}},
		"no text":           {[]string{"a\x1b[2J\xffb\tc\r\n"}, []string{"a\ufffd[2J\ufffdb\tc"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			w := newOutput(func(ev wrenn.BuildEvent) { got = append(got, ev.Line) }).writer()
			for _, text := range tt.writes {
				if n, err := w.Write([]byte(text)); n != len(text) || err != nil {
					t.Fatalf("Write() = %d, %v", n, err)
				}
			}
			w.end()
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}
