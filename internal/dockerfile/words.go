package dockerfile

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Variables that the Dockerfile does not set may be those of the image, which only
// the host knows. They are marked while words are read; the host replaces them.
const (
	markStart = "\x00"
	markEnd   = "\x01"
)

// words reads the words of instructions.
type words struct {
	escape rune
	vars   map[string]string // may have marks
	env    map[string]bool   // of vars, those of ENV, which win over ARG
}

func newWords(escape rune) *words {
	return &words{escape: escape, vars: map[string]string{}, env: map[string]bool{}}
}

func (w *words) set(name, value string) { w.vars[name], w.env[name] = value, true }

func (w *words) setArg(name, value string) {
	if !w.env[name] {
		w.vars[name] = value
	}
}

// getter is the variables for shell.Lex. Those that are unknown are marked, or are
// not set.
type getter struct {
	*words
	mark  bool
	tests map[string]bool // variables of which the word asks whether they are set
}

func (g getter) Get(name string) (string, bool) {
	value, ok := g.vars[name]
	if !ok && g.mark && !g.tests[name] {
		return markStart + name + markEnd, true
	}
	return value, ok
}

func (g getter) Keys() []string {
	var names []string
	for name := range g.vars {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// modified finds variables with a modifier, like ${NAME:-word}. BuildKit applies
// those, and marks are not for them.
var modified = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)[^A-Za-z0-9_}]`)

func (w *words) read(word string, mark, rawQuotes bool) (string, error) {
	if strings.ContainsAny(word, markStart+markEnd) {
		return "", fmt.Errorf("%.40q has control characters", word)
	}
	g := getter{words: w, mark: mark, tests: map[string]bool{}}
	for _, m := range modified.FindAllStringSubmatch(word, -1) {
		g.tests[m[1]] = true
	}
	lex := shell.NewLex(w.escape)
	lex.SkipProcessQuotes = rawQuotes
	out, _, err := lex.ProcessWord(word, g)
	return out, err
}

// marked replaces the variables of a word, and marks those that are not known.
func (w *words) marked(word string) (string, error) { return w.read(word, true, false) }

// open replaces the variables of a word, and leaves those that are not known to the
// host.
func (w *words) open(word string) (string, error) {
	text, err := w.marked(word)
	return escape(text), err
}

// closed replaces the variables of a word; one that is not known is an error, unless
// the word is about whether it is set.
func (w *words) closed(word string) (string, error) {
	text, err := w.marked(word)
	if err == nil {
		if _, name, found := strings.Cut(text, markStart); found {
			name, _, _ = strings.Cut(name, markEnd)
			err = fmt.Errorf("$%s is not set in the Dockerfile, and cannot be used here", name)
		}
	}
	return text, err
}

// raw replaces the variables of a text whose quotes are plain.
func (w *words) raw(text string) (string, error) {
	out, err := w.read(text, true, true)
	if err == nil && strings.Contains(out, markStart) {
		err = fmt.Errorf("a here-document that is copied can use variables of the Dockerfile alone")
	}
	return out, err
}

// escape makes a text with marks a word for the host: marks become variables, and
// what the host would replace is plain.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\\`, "$", `\$`, "`", "\\`", `"`, `\"`).Replace(text)
	return strings.NewReplacer(markStart, "${", markEnd, "}").Replace(text)
}
