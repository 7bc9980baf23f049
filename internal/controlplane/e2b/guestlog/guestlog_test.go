package guestlog

import (
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var created = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return created.Add(time.Duration(ms) * time.Millisecond) }

const console = "[    0.412345] Run /init as init process\r\n" +
	"\r\n" +
	"wrenn-init: \x1b[31mred\xff\r\n" +
	"time=2026-01-02T15:00:02.500Z level=WARN msg=\"no cgroup controller\" controller=memory err=\"a \\\"b\\\"\"\n" +
	"[    3.000001] eth0: link up\n" +
	"time=2026-01-02T15:00:01.000Z level=DEBUG msg=late\n" + // the clock was set back
	"time=2027-01-02T15:00:01.000Z level=ERROR+1 msg=future\n" +
	"time=now level=INFO msg=x\n" +
	"time=2026-01-02T15:00:03.000Z level=INFO\n" +
	"not comp"

func TestParse(t *testing.T) {
	want := []Entry{
		{Time: at(1), Logger: "kernel", Message: "Run /init as init process"},
		{Time: at(2), Logger: "console", Message: "wrenn-init: \uFFFD[31mred\uFFFD"},
		{Time: at(2500), Level: slog.LevelWarn, Logger: "envd", Message: "no cgroup controller", Fields: map[string]string{"controller": "memory", "err": `a "b"`}},
		{Time: at(2501), Logger: "kernel", Message: "eth0: link up"},
		{Time: at(2502), Level: slog.LevelDebug, Logger: "envd", Message: "late"},
		{Time: at(2503), Level: slog.LevelError + 1, Logger: "envd", Message: "future"},
		{Time: at(2504), Logger: "console", Message: "time=now level=INFO msg=x"},
		{Time: at(2505), Logger: "console", Message: "time=2026-01-02T15:00:03.000Z level=INFO"},
	}
	now := created.Add(time.Hour)
	if diff := cmp.Diff(want, Parse(console, created, now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	more := Parse(console+"lete\nnext\n", created, now)
	if diff := cmp.Diff(want, more[:len(want)]); diff != "" {
		t.Errorf("with more output the entries change (-before +now):\n%s", diff)
	}
	if last := more[len(want):]; len(last) != 2 || last[0].Message != "not complete" || !last[0].Time.After(want[len(want)-1].Time) {
		t.Errorf("new entries: %v", last)
	}
}

func TestSelect(t *testing.T) {
	for name, tc := range map[string]struct {
		query Query
		want  string
	}{
		"all":             {Query{Limit: 9, Level: slog.LevelDebug}, "a b c d"},
		"first":           {Query{Limit: 2, Level: slog.LevelDebug}, "a b"},
		"last":            {Query{Limit: 2, Level: slog.LevelDebug, Backward: true}, "d c"},
		"none":            {Query{Level: slog.LevelDebug}, ""},
		"from":            {Query{Limit: 9, Level: slog.LevelDebug, Cursor: at(2)}, "b c d"},
		"before":          {Query{Limit: 9, Level: slog.LevelDebug, Cursor: at(3), Backward: true}, "b a"},
		"level":           {Query{Limit: 9, Level: slog.LevelWarn}, "c d"},
		"search":          {Query{Limit: 9, Level: slog.LevelDebug, Search: "b"}, "b"},
		"after the last":  {Query{Limit: 9, Level: slog.LevelDebug, Cursor: at(5)}, ""},
		"limit and level": {Query{Limit: 1, Level: slog.LevelInfo}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, e := range tc.query.Select([]Entry{
				{Time: at(1), Message: "a", Level: slog.LevelDebug}, {Time: at(2), Message: "b"},
				{Time: at(3), Message: "c", Level: slog.LevelWarn}, {Time: at(4), Message: "d", Level: slog.LevelError},
			}) {
				got = append(got, e.Message)
			}
			if text := strings.Join(got, " "); text != tc.want {
				t.Errorf("got %q, want %q", text, tc.want)
			}
		})
	}
}

// Times grow by at least a millisecond, texts are bounded and harmless.
func FuzzParse(f *testing.F) {
	f.Add(console)
	f.Add("time=2026-01-02T15:00:02.5009Z level=INFO msg=\"\\x00\\n\" \"=1 a=\\\n")
	f.Add("time=2026-01-02T15:00:00Z level=INFO+9223372036854775807 msg=`x` a=b a=c\n")
	f.Fuzz(func(t *testing.T, text string) {
		last := created
		for _, e := range Parse(text, created, created.Add(time.Hour)) {
			if e.Time.Sub(last) < time.Millisecond {
				t.Fatalf("%v follows %v", e.Time, last)
			}
			last = e.Time
			if e.Message == "" || len(e.Message) > maxMessage || strings.ContainsAny(e.Message, "\x00\x1b\r\n") || !utf8.ValidString(e.Message) || len(e.Fields) > maxFields {
				t.Fatalf("entry %+v", e)
			}
		}
	})
}
