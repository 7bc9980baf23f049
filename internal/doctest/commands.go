package doctest

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"mvdan.cc/sh/v3/syntax"
)

// Command is a command line of a page.
type Command struct {
	At    string   // FILE:LINE
	Words []string // without quotes; the first is the program. What the shell would expand is "1"
	// Sketch is a command line that is described, not given: it may leave out
	// arguments, has brackets for what is optional and bars between alternatives.
	Sketch bool
}

// shells are the languages of blocks that have command lines.
var shells = []string{"", "sh", "bash", "console"}

// prompt is how a block shows a command beside its output.
const prompt = "$ "

// Commands returns the command lines that call a program with one of the names: lines
// of blocks, and code within text. Of a block that shows prompts only the lines with a
// prompt are commands.
func Commands(tb testing.TB, names ...string) []Command {
	tb.Helper()
	var all []Command
	for _, p := range Pages(tb) {
		for _, b := range p.Blocks {
			if slices.Contains(shells, b.Language) {
				all = append(all, inBlock(tb, p.File, b, names)...)
			}
		}
		for _, s := range p.Spans {
			words := strings.Fields(strings.TrimPrefix(s.Text, "sudo "))
			if len(words) > 1 && slices.Contains(names, path.Base(words[0])) {
				all = append(all, Command{fmt.Sprintf("%s:%d", p.File, s.Line), words, true})
			}
		}
	}
	return all
}

// inBlock returns the commands of a block.
func inBlock(tb testing.TB, file string, b Block, names []string) []Command {
	tb.Helper()
	var all []Command
	prompts := strings.HasPrefix(b.Text.Text, prompt) || strings.Contains(b.Text.Text, "\n"+prompt)
	begins := regexp.MustCompile(`^(sudo )?(bin/)?(` + strings.Join(names, "|") + `)( |$)`)
	number := b.Line - 1
	for line := range strings.Lines(b.Text.Text) {
		number++
		line = strings.TrimSpace(line)
		bare, has := strings.CutPrefix(line, prompt)
		if prompts && !has {
			continue
		}
		calls, err := Calls(bare)
		if err != nil && begins.MatchString(bare) {
			tb.Errorf("%s:%d: no command line of a shell: %v", file, number, err)
		}
		for _, words := range calls {
			if words = callOf(words, names); words != nil {
				optional := slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "[") })
				all = append(all, Command{fmt.Sprintf("%s:%d", file, number), words, optional})
			}
		}
	}
	return all
}

// Calls returns the words of each simple command of a line for a shell, without quotes.
// Parts that the shell would expand are "1".
func Calls(line string) ([][]string, error) {
	file, err := syntax.NewParser().Parse(strings.NewReader(line), "")
	if err != nil {
		return nil, err
	}
	var calls [][]string
	syntax.Walk(file, func(n syntax.Node) bool {
		if call, ok := n.(*syntax.CallExpr); ok && len(call.Args) > 0 {
			var words []string
			for _, a := range call.Args {
				words = append(words, wordOf(a.Parts))
			}
			calls = append(calls, words)
		}
		return true
	})
	return calls, nil
}

// wordOf returns a word as a program would get it.
func wordOf(parts []syntax.WordPart) string {
	var b strings.Builder
	for _, p := range parts {
		switch p := p.(type) {
		case *syntax.Lit:
			b.WriteString(p.Value)
		case *syntax.SglQuoted:
			b.WriteString(p.Value)
		case *syntax.DblQuoted:
			b.WriteString(wordOf(p.Parts))
		default:
			b.WriteByte('1')
		}
	}
	return b.String()
}

// callOf returns the part of a simple command that calls one of the programs: all of
// it, or what follows sudo or "--". nil is none.
func callOf(words, names []string) []string {
	is := func(i int) bool { return i < len(words) && slices.Contains(names, path.Base(words[i])) }
	switch {
	case is(0):
		return words
	case words[0] == "sudo" && is(1):
		return words[1:]
	case words[0] == "sudo" && words[1] == "-u" && is(3):
		return words[3:]
	}
	if i := slices.Index(words, "--") + 1; i > 0 && is(i) {
		return words[i:]
	}
	return nil
}

// CheckCommands fails the test for each command line of the documentation that the
// program would refuse: the command, its flags, their values, and the number of
// arguments. grammar returns a new value of the program's command line for kong; names
// are those of the program.
func CheckCommands(t *testing.T, grammar func() any, names ...string) {
	t.Helper()
	commands := Commands(t, names...)
	if len(commands) == 0 {
		t.Errorf("the documentation has no command line of %s", names[0])
	}
	for _, c := range commands {
		parser, err := kong.New(grammar(), kong.Name(names[0]), kong.Exit(func(int) {}))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.check(parser); err != nil {
			t.Errorf("%s: %s: %v", c.At, strings.Join(c.Words, " "), err)
		}
	}
}

// check parses a command line without running it.
func (c Command) check(parser *kong.Kong) error {
	words := c.Words[1:]
	if len(words) > 0 && words[0] == "help" {
		words = words[1:]
	}
	if c.Sketch || slices.Contains(words, "--help") { // help is printed in place of what is missing
		return checkSketch(parser.Model.Node, words)
	}
	trace, err := kong.Trace(parser, words)
	if err != nil {
		return err
	}
	if trace.Error != nil {
		return trace.Error
	}
	if err := trace.Reset(); err != nil { // to the defaults
		return err
	}
	if _, err := trace.Apply(); err != nil {
		return err
	}
	return trace.Validate()
}

// checkSketch looks for the commands and flags that a sketch names.
func checkSketch(node *kong.Node, words []string) error {
	for i := 0; i < len(words); i++ {
		word := strings.Trim(words[i], "[]")
		switch {
		case word == "--" || word == "…":
			return nil
		case strings.HasPrefix(word, "-"):
			flag := findFlag(node, word)
			if flag == nil {
				return fmt.Errorf("there is no flag %s", word)
			}
			if !flag.IsBool() && !strings.Contains(word, "=") {
				i++ // its value
			}
		case len(node.Children) > 0 && strings.ToUpper(word) != word:
			names := strings.Split(word, "|")
			for _, name := range names {
				child := findChild(node, name)
				if child == nil {
					return fmt.Errorf("there is no command %s", name)
				}
				if len(names) == 1 {
					node = child
				}
			}
		}
	}
	return nil
}

// findFlag returns the flag of a command or of those above it; nil is none.
func findFlag(node *kong.Node, word string) *kong.Flag {
	name, _, _ := strings.Cut(word, "=")
	for ; node != nil; node = node.Parent {
		for _, f := range node.Flags {
			if name == "--"+f.Name || f.Short != 0 && name == "-"+string(f.Short) {
				return f
			}
		}
	}
	return nil
}

// findChild returns the command below node with that name; nil is none.
func findChild(node *kong.Node, name string) *kong.Node {
	for _, c := range node.Children {
		if c.Name == name || slices.Contains(c.Aliases, name) {
			return c
		}
	}
	return nil
}
