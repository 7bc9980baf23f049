package template

import (
	"maps"
	"path"
	"strings"

	"wrenn.dev"
)

// state is what the steps of a build see besides the disk.
type state struct {
	Env     map[string]string `json:"env,omitempty"`  // also of the sandboxes
	Args    map[string]string `json:"args,omitempty"` // of the steps alone
	User    string            `json:"user,omitempty"` // "" is the guest's default
	Workdir string            `json:"workdir,omitempty"`
}

func (s state) clone() state {
	s.Env, s.Args = maps.Clone(s.Env), maps.Clone(s.Args)
	return s
}

// variables are those of the commands of steps.
func (s state) variables() map[string]string {
	all := maps.Clone(s.Args)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, s.Env)
	return all
}

// apply returns the state after the step. For steps that only change the state that
// is all that there is to do.
func (s state) apply(step wrenn.BuildStep) (state, error) {
	next := s.clone()
	var err error
	switch step.Kind {
	case wrenn.StepEnv:
		next.Env, err = s.set(next.Env, step.Args)
	case wrenn.StepArg:
		next.Args, err = s.set(next.Args, step.Args)
	case wrenn.StepWorkdir:
		next.Workdir, err = s.path(step.Args[0])
	case wrenn.StepUser:
		if next.User, err = s.expand(step.Args[0]); err == nil {
			err = wrenn.CheckAccount(next.User)
		}
	}
	if err == nil && max(wrenn.EnvBytes(next.Env), wrenn.EnvBytes(next.Args)) > wrenn.MaxEnvBytes {
		err = wrenn.Errorf(wrenn.Invalid, "the variables of ENV, or those of ARG, have more than %d bytes together", wrenn.MaxEnvBytes)
	}
	return next, err
}

// set returns the variables with names and values. The values see the variables
// before the step, as in a Dockerfile.
func (s state) set(env map[string]string, args []string) (map[string]string, error) {
	if env == nil {
		env = map[string]string{}
	}
	for i := 0; i+1 < len(args); i += 2 {
		value, err := s.expand(args[i+1])
		if err != nil {
			return nil, err
		}
		env[args[i]] = value
	}
	return env, nil
}

// path returns a path of a step with its variables replaced, absolute.
func (s state) path(text string) (string, error) {
	expanded, err := s.expand(text)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(expanded) {
		expanded = path.Join("/", s.Workdir, expanded)
	}
	return path.Clean(expanded), nil
}

// expand replaces variables as a shell does inside of double quotes: $NAME, ${NAME},
// ${NAME:-word} and ${NAME:+word}, also without the colon. A backslash makes the $, `,
// " or backslash after it plain. Anything else stays as it is.
func (s state) expand(text string) (string, error) {
	out, err := expand(text, s.variables(), 0)
	if err == nil && len(out) > wrenn.MaxEnvBytes {
		err = wrenn.Errorf(wrenn.Invalid, "%.40q becomes longer than %d bytes with its variables", text, wrenn.MaxEnvBytes)
	}
	return out, err
}

// maxDepth bounds ${A:-${B:-…}}.
const maxDepth = 8

func expand(text string, env map[string]string, depth int) (string, error) {
	var out strings.Builder
	for i := 0; i < len(text) && out.Len() <= wrenn.MaxEnvBytes; {
		switch {
		case text[i] == '\\' && i+1 < len(text) && strings.IndexByte("$`\"\\", text[i+1]) >= 0:
			out.WriteByte(text[i+1])
			i += 2
		case text[i] == '$':
			value, n, err := variable(text[i:], env, depth)
			if err != nil {
				return "", err
			}
			out.WriteString(value)
			i += n
		default:
			out.WriteByte(text[i])
			i++
		}
	}
	return out.String(), nil
}

// variable returns the value of the variable at the start of the text, which begins
// with $, and the length of its expression.
func variable(text string, env map[string]string, depth int) (value string, n int, err error) {
	if !strings.HasPrefix(text, "${") {
		name := nameAt(text[1:])
		if name == "" {
			return "$", 1, nil
		}
		return env[name], 1 + len(name), nil
	}
	end := closing(text)
	if end < 0 || depth > maxDepth {
		return "", 0, wrenn.Errorf(wrenn.Invalid, "%.40q has no end, or is nested too deeply", text)
	}
	inside := text[2:end]
	name := nameAt(inside)
	value, isSet := env[name]
	operator, word := inside[len(name):], ""
	if rest, colon := strings.CutPrefix(operator, ":"); colon {
		isSet, operator = value != "", rest
	}
	if operator != "" {
		operator, word = operator[:1], operator[1:]
	}
	switch {
	case name != "" && operator == "":
	case name != "" && operator == "-" && !isSet, name != "" && operator == "+" && isSet:
		value, err = expand(word, env, depth+1)
	case name != "" && operator == "-":
	case name != "" && operator == "+":
		value = ""
	default:
		err = wrenn.Errorf(wrenn.Invalid, "%.40q is not supported: use $NAME, ${NAME}, ${NAME:-word} or ${NAME:+word}", text[:end+1])
	}
	return value, end + 1, err
}

// nameAt returns the name of a variable at the start of the text.
func nameAt(text string) string {
	for i, c := range []byte(text) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return text[:i]
		}
	}
	return text
}

// closing returns the index of the brace that closes the one of the ${ at the start,
// -1 if there is none.
func closing(text string) int {
	open := 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\':
			i++
		case strings.HasPrefix(text[i:], "${"):
			open++
			i++
		case text[i] == '}':
			if open--; open == 0 {
				return i
			}
		}
	}
	return -1
}
