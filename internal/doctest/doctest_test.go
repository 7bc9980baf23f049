package doctest

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	p := parse("a.md", []byte("# A `b` c: d\n\nsee `wrenn up` and [it](b.md#x)\n\n| a |\n|---|\n| `c` |\n\n# A b c d\n\n    wrenn list\n\n```toml\n[a]\nb = 1\n```\n"))
	want := Page{
		File: "a.md", Source: p.Source,
		Blocks:  []Block{{Text{"wrenn list\n", 11}, ""}, {Text{"[a]\nb = 1\n", 14}, "toml"}},
		Spans:   []Text{{"b", 1}, {"wrenn up", 3}, {"c", 7}},
		Links:   []Text{{"b.md#x", 3}},
		Anchors: map[string]bool{"a-b-c-d": true, "a-b-c-d-1": true},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCallsOfPrograms(t *testing.T) {
	for line, want := range map[string][]string{
		`sudo bin/wrenn up   # starts`:               {"bin/wrenn", "up"},
		`ID=$(wrenn create -l "a $b")`:               {"wrenn", "create", "-l", "a 1"},
		`tar c . | wrenn exec $ID -- tar x`:          {"wrenn", "exec", "1", "--", "tar", "x"},
		`claude mcp add wrenn -- wrenn mcp`:          {"wrenn", "mcp"},
		`sudo -u wrenn wrenn key 'a b'`:              {"wrenn", "key", "a b"},
		`source <(wrenn completion bash)`:            {"wrenn", "completion", "bash"},
		`systemctl enable --now wrenn`:               nil,
		`see wrenn up (in another terminal, please)`: nil,
	} {
		calls, _ := Calls(line)
		var got []string
		for _, words := range calls {
			if c := callOf(words, []string{"wrenn"}); c != nil {
				got = c
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", line, diff)
		}
	}
}

func TestCheck(t *testing.T) {
	type grammar struct {
		Config string
		Sub    struct {
			Get struct {
				ID   string `arg:""`
				Wait int    `short:"w"`
			} `cmd:"" aliases:"show"`
			Put struct{} `cmd:""`
		} `cmd:""`
	}
	for _, test := range []struct {
		line   string
		sketch bool
		good   bool
	}{
		{"p sub get 1 -w 3", false, true},
		{"p sub show 1 --config FILE", false, true},
		{"p sub get", false, false},
		{"p sub get --help", false, true},
		{"p sub gets --help", false, false},
		{"p sub get 1 2", false, false},
		{"p sub get 1 --wait soon", false, false},
		{"p sub get 1 --lost", false, false},
		{"p sub gets 1", false, false},
		{"p sub get", true, true},
		{"p help COMMAND", true, true},
		{"p sub get|put", true, true},
		{"p sub get|take", true, false},
		{"p sub get ID [--wait N] [--config FILE] -- more", true, true},
		{"p sub get --lost", true, false},
		{"p sub put --wait 1", true, false},
	} {
		parser, err := kong.New(new(grammar), kong.Exit(func(int) {}))
		if err != nil {
			t.Fatal(err)
		}
		calls, err := Calls(test.line)
		if test.sketch {
			calls = [][]string{strings.Fields(test.line)}
		} else if err != nil {
			t.Fatal(err)
		}
		if err := (Command{"", calls[0], test.sketch}).check(parser); (err == nil) != test.good {
			t.Errorf("%q, a sketch: %t: %v", test.line, test.sketch, err)
		}
	}
}
