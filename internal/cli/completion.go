package cli

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

const (
	// lookup bounds requests to the server: the user has pressed Tab and waits.
	lookup = time.Second
	// maxSuggested is more suggestions than a user reads.
	maxSuggested = 200
)

//go:embed completion/wrenn.bash
var bashScript string

//go:embed completion/wrenn.zsh
var zshScript string

//go:embed completion/wrenn.fish
var fishScript string

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: ${enum}."`
}

// Help returns the instructions that follow the command's summary.
func (completionCommand) Help() string {
	return `For this shell alone, and for each new one:

  bash  source <(wrenn completion bash)      in ~/.bashrc
  zsh   source <(wrenn completion zsh)       in ~/.zshrc, after compinit
  fish  wrenn completion fish | source       in ~/.config/fish/config.fish`
}

// Run prints a completion script that calls this program, by its path.
func (c *completionCommand) Run(s *session) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	_, err = io.WriteString(s.Out, scriptOf(c.Shell, program))
	return err
}

// scriptOf returns the completion script for a shell; the script calls program.
func scriptOf(shell, program string) string {
	script, quoted := bashScript, "'"+strings.ReplaceAll(program, "'", `'\''`)+"'"
	switch shell {
	case "zsh":
		script = zshScript
	case "fish":
		script, quoted = fishScript, "'"+strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(program)+"'"
	}
	return strings.ReplaceAll(script, "'WRENN'", quoted)
}

// completeCommand is what the completion scripts call.
type completeCommand struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

// Run prints the completions of the last word, one per line, followed by a tab
// and a remark where it has one. When it prints nothing, shells offer files.
func (c *completeCommand) Run(ctx context.Context, s *session, k *kong.Kong) error {
	words := afterDashes(c.Words)
	if len(words) == 0 {
		words = []string{""}
	}
	done, last := words[:len(words)-1], words[len(words)-1]
	for _, found := range s.complete(ctx, k.Model.Node, done, last) {
		if !strings.HasPrefix(found.word, last) {
			continue
		}
		line := found.word
		if found.remark != "" {
			line += "\t" + plain.Line(found.remark)
		}
		fmt.Fprintln(s.Out, line)
	}
	return nil
}

// suggestion is a possible next word.
type suggestion struct{ word, remark string }

// position is the parser's state within a command line.
type position struct {
	node  *kong.Node
	args  []string          // arguments of node so far
	value *kong.Flag        // the flag whose value comes next; nil for none
	free  bool              // after "--": no more flags
	lost  bool              // the line is wrong, or continues with a sandbox's command
	given map[string]string // values of flags
}

// complete suggests the word that follows the words in done and begins with last.
func (s *session) complete(ctx context.Context, root *kong.Node, done []string, last string) []suggestion {
	at := position{node: root, given: map[string]string{}}
	for _, word := range done {
		at.advance(word)
	}
	s.line.URL, s.line.Config = cmp.Or(at.given["url"], s.line.URL), cmp.Or(at.given["config"], s.line.Config)
	name, _, valued := strings.Cut(last, "=")
	switch {
	case at.lost:
		return nil
	case at.value != nil:
		return s.values(ctx, at.value.Value, nil, "")
	case !at.free && valued && strings.HasPrefix(last, "--"):
		if flag := at.flag(name); flag != nil {
			return s.values(ctx, flag.Value, nil, name+"=")
		}
		return nil
	case !at.free && strings.HasPrefix(last, "-"):
		return at.flags()
	case len(at.node.Children) > 0:
		return at.commands()
	}
	if arg := at.argument(); arg != nil && !isPassthrough(arg) {
		return s.values(ctx, arg, at.args, "")
	}
	return nil
}

func isPassthrough(arg *kong.Value) bool { return arg.PassthroughMode != kong.PassThroughModeNone }

// advance parses the next complete word.
func (at *position) advance(word string) {
	switch {
	case at.lost:
	case at.value != nil:
		at.given[at.value.Name] = word
		at.value = nil
	case word == "--":
		at.free = true
	case !at.free && strings.HasPrefix(word, "-") && word != standard:
		at.advanceFlag(word)
	case len(at.node.Children) > 0:
		at.enter(word)
	default:
		arg := at.argument()
		at.lost = arg == nil || isPassthrough(arg)
		at.args = append(at.args, word)
	}
}

func (at *position) advanceFlag(word string) {
	name, value, valued := strings.Cut(word, "=")
	flag := at.flag(name)
	if flag == nil {
		at.lost = len(word) < 2 || word[1] == '-' || at.flag(word[:2]) == nil // else it is -xVALUE
		return
	}
	switch {
	case valued:
		at.given[flag.Name] = value
	case !flag.IsBool():
		at.value = flag
	}
}

func (at *position) enter(word string) {
	for _, child := range at.node.Children {
		if child.Name == word || slices.Contains(child.Aliases, word) {
			at.node = child
			return
		}
	}
	at.lost = true
}

// argument returns the next positional argument, nil if there is none. The last one may be cumulative.
func (at *position) argument() *kong.Value {
	args := at.node.Positional
	switch n := len(at.args); {
	case n < len(args):
		return args[n]
	case len(args) > 0 && args[len(args)-1].IsCumulative():
		return args[len(args)-1]
	}
	return nil
}

// visible returns the flags of the command and of its parents.
func (at *position) visible() []*kong.Flag {
	var out []*kong.Flag
	for node := at.node; node != nil; node = node.Parent {
		out = append(out, node.Flags...)
	}
	return slices.DeleteFunc(out, func(f *kong.Flag) bool { return f.Hidden })
}

// flag finds a flag by "--name" or "-n".
func (at *position) flag(word string) *kong.Flag {
	for _, flag := range at.visible() {
		if word == "--"+flag.Name || flag.Short != 0 && word == "-"+string(flag.Short) {
			return flag
		}
	}
	return nil
}

func (at *position) flags() []suggestion {
	var out []suggestion
	for _, flag := range at.visible() {
		out = append(out, suggestion{"--" + flag.Name, flag.Help})
	}
	return out
}

func (at *position) commands() []suggestion {
	var out []suggestion
	for _, child := range at.node.Children {
		if !child.Hidden {
			out = append(out, suggestion{child.Name, child.Help})
		}
	}
	return out
}

// values returns the possible values of a flag or an argument, without those already given.
func (s *session) values(ctx context.Context, value *kong.Value, given []string, prefix string) []suggestion {
	var out []suggestion
	switch what := value.Tag.Get("complete"); {
	case value.Enum != "":
		for _, word := range value.EnumSlice() {
			out = append(out, suggestion{word: word})
		}
	case what == "key":
		out = s.keys(ctx)
	case what == "template":
		out = s.templates(ctx)
	case what == "volume":
		out = s.volumes(ctx)
	case what == "volume-file":
		for _, volume := range s.volumes(ctx) {
			volume.word += ":"
			out = append(out, volume)
		}
	case what == "secret":
		out = s.secrets(ctx)
	case what == "host":
		out = s.hosts(ctx)
	case what == "sandbox":
		out = s.sandboxes(ctx, "")
	case what == "checkpoint" && len(given) > 0: // the sandbox is the argument before
		out = s.checkpointsOf(ctx, given[0])
	case what == "file":
		out = s.sandboxes(ctx, ":")
	}
	out = slices.DeleteFunc(out, func(o suggestion) bool { return slices.Contains(given, o.word) })
	for i := range out {
		out[i].word = prefix + out[i].word
	}
	return out
}

// sandboxes suggests the sandboxes that did not end. On an error it suggests
// none: a shell shows no errors while the user types.
func (s *session) sandboxes(ctx context.Context, suffix string) []suggestion {
	api, err := s.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookup)
	defer cancel()
	var out []suggestion
	for sb, err := range api.Sandboxes(ctx, client.ListSandboxes{States: living, PageSize: maxSuggested}) {
		if err != nil || len(out) == maxSuggested {
			break
		}
		remark := string(sb.State) + ", " + age(sb.CreatedAt)
		if len(sb.Metadata) > 0 {
			remark += ", " + pairs(sb.Metadata)
		}
		out = append(out, suggestion{sb.ID + suffix, remark})
	}
	return out
}

func (s *session) hosts(ctx context.Context) []suggestion {
	api, err := s.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookup)
	defer cancel()
	all, err := api.Hosts(ctx)
	if err != nil {
		return nil
	}
	var out []suggestion
	for i := range all {
		out = append(out, suggestion{all[i].ID, all[i].Status})
	}
	return out
}

func (s *session) checkpointsOf(ctx context.Context, sandbox string) []suggestion {
	api, err := s.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookup)
	defer cancel()
	all, err := api.Checkpoints(ctx, sandbox)
	if err != nil {
		return nil
	}
	var out []suggestion
	for _, cp := range all.Checkpoints {
		out = append(out, suggestion{cp.ID, age(cp.CreatedAt) + ", " + cp.Name})
	}
	return out
}

func (s *session) templates(ctx context.Context) []suggestion {
	return suggest(ctx, s, (*client.Client).Templates, func(t client.Template) suggestion { return suggestion{t.Name, templateRow(t)[7]} })
}

func (s *session) volumes(ctx context.Context) []suggestion {
	return suggest(ctx, s, (*client.Client).Volumes, func(v client.Volume) suggestion { return suggestion{v.Name, age(v.CreatedAt)} })
}

func (s *session) secrets(ctx context.Context) []suggestion {
	return suggest(ctx, s, (*client.Client).Secrets, func(o client.Secret) suggestion { return suggestion{o.Name, age(o.UpdatedAt)} })
}

func (s *session) keys(ctx context.Context) []suggestion {
	return suggest(ctx, s, (*client.Client).Keys, func(k client.Key) suggestion { return suggestion{k.ID, k.Name} })
}

// suggest suggests what a list has; on an error nothing, see sandboxes.
func suggest[T any](ctx context.Context, s *session, list func(*client.Client, context.Context) ([]T, error), of func(T) suggestion) []suggestion {
	api, err := s.client()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookup)
	defer cancel()
	all, _ := list(api, ctx)
	var out []suggestion
	for _, one := range all[:min(len(all), maxSuggested)] {
		out = append(out, of(one))
	}
	return out
}
