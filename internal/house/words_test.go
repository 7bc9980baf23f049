package house

import (
	"fmt"
	"regexp"
	"strings"
)

// A rule bans a phrase. Phrases are found in any case, across the line breaks
// of comments, and inside identifiers: removeLitter contains "litter".
type rule struct {
	phrase  string // a regular expression whose spaces match line breaks, too
	instead string
}

// rules are the phrases that made this code hard to read for a stranger: the
// grammar first, then private words for things that have a common name.
var rules = []rule{
	{"who(ever|mever)", "name the caller, the client, the goroutine"},
	{"whom", "name the person or the program"},
	{"somebody('s)?", "name it: the user, another process, a caller"},
	{"nobody('s)?", `"no process", "no caller", "unused"`},
	{"anew", `"again"`},
	{"goes on on", `"continues on"`},
	{"for ever", `"forever", or the bound`},
	{"of (its|their|his|her|our) own", `"its own …"`},
	{"as (many|much) as (it|they|he) may", "say the limit"},
	{"(said|say|says) nothing", "say what did not happen: no answer, no output"},
	{"(says|said|say|tells) whether", `"reports whether"`},
	{"(is|are) there", `"exists"`},
	{"(in|of|from|the) meanwhile", `"while …", "since then"`},
	{"lest", `"so that … not"`},

	{"litter(s|ed|ing)?", `"garbage"`},
	{"un ?ke(ep|eps|pt)", `"unpin"`},
	{"condemn(s|ed|ing)?", `"mark dead"`},
	{"bur(y|ies|ied)", `"mark dead"`},
	{"doom(s|ed)?", `"fail", "cancel"`},
	{"rehears(e|es|ed|al|als|ing)", `"warm up"`},
	{"(re)?affirm(s|ed|ing)?", `"confirm"`},
	{"rous(e|es|ed|ing)", `"notify"`},
	{"furnish(es|ed|ing)?", `"populate", "prepare"`},
	{"or lost", `"mark lost if not found"`},

	{"cancell(ed|ing)", `"canceled", "canceling"`},
	{"(neighb|col|behavi|fav|hon|lab)our(s|ed|ing|al|able|ite)?", `"-or": American spelling`},
	{"(initial|serial|recogn|organ|util|minim|maxim|optim|normal|synchron)is(e|es|ed|ing|ation)", `"-ize": American spelling`},
	{"(dial|label|model|signal|travel|level)l(ed|ing)", "one l: American spelling"},
}

// harmless is text that only looks like a banned phrase: questions, and the
// user of that name on every Unix.
var harmless = regexp.MustCompile(`(?i)\b(?:is|are) there (?:a|an|any|no)\b|["'=]nobody\b`)

// seam and acronym are where an identifier's words meet: removeLitter, HTTPLitter.
var (
	seam    = regexp.MustCompile(`([a-z0-9])([A-Z])|_`)
	acronym = regexp.MustCompile(`([A-Z])([A-Z][a-z])`)
)

// gap is what may be between two words of a phrase: space, or the end of a
// line and the next line's comment sign.
const gap = `(?:[ \t]+|[ \t]*\n[ \t]*(?://|#|--|>)?[ \t]*)`

var (
	breaks = regexp.MustCompile(gap)
	banned = compile(rules)
)

func compile(rules []rule) *regexp.Regexp {
	all := make([]string, len(rules))
	for i, r := range rules {
		all[i] = "(" + strings.ReplaceAll(regexp.MustCompile(`\(([^?])`).ReplaceAllString(r.phrase, "(?:$1"), " ", gap) + ")"
	}
	return regexp.MustCompile(`(?i)\b(?:` + strings.Join(all, "|") + `)\b`)
}

// phrases returns a complaint for each banned phrase in text.
func phrases(text string) []string {
	text = harmless.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat("\n", strings.Count(s, "\n")) + "-" })
	text = acronym.ReplaceAllString(seam.ReplaceAllString(text, "$1 $2"), "$1 $2")
	var found []string
	for _, m := range banned.FindAllStringSubmatchIndex(text, -1) {
		line := 1 + strings.Count(text[:m[0]], "\n")
		phrase := breaks.ReplaceAllString(text[m[0]:m[1]], " ")
		found = append(found, fmt.Sprintf("%d: %q: write %s", line, phrase, instead(m)))
	}
	return found
}

// instead is the advice of the rule that matched.
func instead(match []int) string {
	for i := range rules {
		if match[2*(i+1)] >= 0 {
			return rules[i].instead
		}
	}
	panic("a match of no rule")
}
