// Package dockerfile turns a Dockerfile into the steps of a template's build, and
// its context into the archives that they copy. It is parsed by BuildKit's parser.
// What a template cannot have is refused by name, or left out with a notice.
package dockerfile

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"wrenn.dev"
	"wrenn.dev/client"
)

// maxBytes bounds a Dockerfile.
const maxBytes = 1 << 20

// Step is a step of the build.
type Step struct {
	client.BuildStep
	// Source is of COPY: a path or pattern in the context. Inline, if not nil, is the
	// file of that name instead.
	Source string
	Inline []byte
}

// Plan is what a Dockerfile asks for.
type Plan struct {
	From     string // the container image of FROM
	Steps    []Step
	StartCmd string   // of ENTRYPOINT and CMD; "" without them
	Notices  []string // about what is left out, a line each
}

// Parse reads a Dockerfile. Args are the values of --build-arg. Errors name the line.
func Parse(file io.Reader, args map[string]string) (*Plan, error) {
	text, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxBytes {
		return nil, fmt.Errorf("the Dockerfile is longer than %d KiB", maxBytes>>10)
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, global, err := instructions.Parse(parsed.AST, nil)
	switch {
	case err != nil:
		return nil, err
	case len(stages) > 1:
		return nil, atLine(stages[1].Location, "a second FROM: builds of several stages are not supported; build the earlier stages by themselves")
	case len(stages) == 0:
		return nil, fmt.Errorf("the Dockerfile has no FROM")
	}
	c := newConverter(parsed.EscapeToken, args)
	if err := c.from(stages[0], global); err != nil {
		return nil, err
	}
	for _, command := range stages[0].Commands {
		if err := c.convert(command); err != nil {
			return nil, atLine(command.Location(), "%w", err)
		}
	}
	c.plan.StartCmd = c.startCommand()
	return &c.plan, nil
}

func atLine(where []parser.Range, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if len(where) == 0 {
		return err
	}
	return fmt.Errorf("line %d: %w", where[0].Start.Line, err)
}

// converter turns the instructions of a stage into steps.
type converter struct {
	plan  Plan
	words *words
	args  map[string]string // of --build-arg
	meta  map[string]string // ARGs before FROM
	shell []string

	entrypoint, cmd *instructions.ShellDependantCmdLine
}

func newConverter(escape rune, args map[string]string) *converter {
	return &converter{words: newWords(escape), args: args, meta: map[string]string{}, shell: []string{"/bin/sh", "-c"}}
}

// from reads the ARGs before FROM, and FROM.
func (c *converter) from(stage instructions.Stage, global []instructions.ArgCommand) error {
	outside := newWords(c.words.escape)
	for _, command := range global {
		if err := command.Expand(outside.closed); err != nil {
			return atLine(command.Location(), "%w", err)
		}
		for _, arg := range command.Args {
			if value, ok := c.argValue(arg); ok {
				outside.set(arg.Key, value)
				c.meta[arg.Key] = value
			}
		}
	}
	image, err := outside.closed(stage.BaseName)
	switch {
	case err != nil:
		return atLine(stage.Location, "FROM: %w", err)
	case image == "":
		return atLine(stage.Location, "FROM names no image: is an ARG missing?")
	case image == "scratch":
		return atLine(stage.Location, "FROM scratch: a template needs an image with a shell")
	}
	if stage.Platform != "" {
		c.notice(stage.Location, "FROM --platform is ignored: guests are linux/amd64")
	}
	c.plan.From = image
	return nil
}

func (c *converter) argValue(arg instructions.KeyValuePairOptional) (string, bool) {
	if value, ok := c.args[arg.Key]; ok {
		return value, true
	}
	if arg.Value != nil {
		return *arg.Value, true
	}
	value, ok := c.meta[arg.Key]
	return value, ok
}

func (c *converter) notice(where []parser.Range, text string) {
	c.plan.Notices = append(c.plan.Notices, atLine(where, "%s", text).Error())
}

func (c *converter) add(kind wrenn.StepKind, args ...string) {
	c.plan.Steps = append(c.plan.Steps, Step{BuildStep: client.BuildStep{Kind: string(kind), Args: args}})
}

func (c *converter) convert(command instructions.Command) error {
	switch cmd := command.(type) {
	case *instructions.RunCommand:
		return c.run(cmd)
	case *instructions.CopyCommand:
		return c.copyFiles(cmd)
	case *instructions.AddCommand:
		return c.addFiles(cmd)
	case *instructions.EnvCommand:
		return c.env(cmd)
	case *instructions.ArgCommand:
		return c.arg(cmd)
	case *instructions.WorkdirCommand:
		return c.single(wrenn.StepWorkdir, cmd.Path)
	case *instructions.UserCommand:
		return c.single(wrenn.StepUser, cmd.User)
	case *instructions.ShellCommand:
		c.shell = cmd.Shell
	case *instructions.CmdCommand:
		c.cmd = &cmd.ShellDependantCmdLine
	case *instructions.EntrypointCommand:
		c.entrypoint, c.cmd = &cmd.ShellDependantCmdLine, nil // as Docker forgets an earlier CMD
	case *instructions.OnbuildCommand:
		return fmt.Errorf("ONBUILD is not supported: no image is made for others to build on")
	default:
		c.notice(command.Location(), strings.ToUpper(command.Name())+" is ignored: a template has nothing like it")
	}
	return nil
}

func (c *converter) single(kind wrenn.StepKind, word string) error {
	value, err := c.words.open(word)
	if err == nil {
		c.add(kind, value)
	}
	return err
}

func (c *converter) env(cmd *instructions.EnvCommand) error {
	if err := cmd.Expand(c.words.marked); err != nil {
		return err
	}
	var args []string
	for _, pair := range cmd.Env {
		args = append(args, pair.Key, escape(pair.Value))
	}
	for _, pair := range cmd.Env { // after all: they do not see each other
		c.words.set(pair.Key, pair.Value)
	}
	c.add(wrenn.StepEnv, args...)
	return nil
}

func (c *converter) arg(cmd *instructions.ArgCommand) error {
	if err := cmd.Expand(c.words.marked); err != nil {
		return err
	}
	var args []string
	for _, arg := range cmd.Args {
		if value, ok := c.argValue(arg); ok {
			args = append(args, arg.Key, escape(value))
			c.words.setArg(arg.Key, value)
		}
	}
	if len(args) > 0 {
		c.add(wrenn.StepArg, args...)
	}
	return nil
}

func (c *converter) run(cmd *instructions.RunCommand) error {
	for _, flag := range cmd.FlagsUsed {
		if flag == "mount" {
			return fmt.Errorf("RUN --mount is not supported: COPY what the command needs")
		}
		c.notice(cmd.Location(), "RUN --"+flag+" is ignored")
	}
	c.add(wrenn.StepRun, commandOf(cmd.ShellDependantCmdLine))
	c.plan.Steps[len(c.plan.Steps)-1].Shell = c.shell
	if !cmd.PrependShell && len(cmd.Files) == 0 {
		c.plan.Steps[len(c.plan.Steps)-1].Shell = []string{"/bin/sh", "-c"}
	}
	return nil
}

// commandOf returns a command line for a shell.
func commandOf(line instructions.ShellDependantCmdLine) string {
	if !line.PrependShell {
		quoted := make([]string, len(line.CmdLine))
		for i, word := range line.CmdLine {
			quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		if len(quoted) > 0 {
			quoted[0] = "exec " + quoted[0]
		}
		return strings.Join(quoted, " ")
	}
	text := strings.Join(line.CmdLine, " ")
	if len(line.Files) == 1 && strings.TrimSpace(text) == "<<"+line.Files[0].Name { // the file is the script
		return inline(line.Files[0])
	}
	for _, file := range line.Files {
		text += "\n" + inline(file) + file.Name
	}
	return text
}

func inline(file instructions.ShellInlineFile) string {
	if file.Chomp {
		return parser.ChompHeredocContent(file.Data)
	}
	return file.Data
}

// startCommand combines ENTRYPOINT and CMD as Docker does.
func (c *converter) startCommand() string {
	switch {
	case c.entrypoint == nil && c.cmd == nil:
		return ""
	case c.entrypoint == nil:
		return commandOf(*c.cmd)
	case c.cmd == nil || c.entrypoint.PrependShell:
		return commandOf(*c.entrypoint)
	}
	both := *c.entrypoint
	if c.cmd.PrependShell {
		both.CmdLine = append(append(slices.Clip(both.CmdLine), c.shell...), commandOf(*c.cmd))
	} else {
		both.CmdLine = append(slices.Clip(both.CmdLine), c.cmd.CmdLine...)
	}
	return commandOf(both)
}

func (c *converter) addFiles(cmd *instructions.AddCommand) error {
	for _, source := range cmd.SourcePaths {
		if u, err := url.Parse(source); err == nil && u.Scheme != "" || strings.HasPrefix(source, "git@") {
			return fmt.Errorf("ADD %.80q is not supported: RUN a download, by curl or git", source)
		}
		if archiveName.MatchString(source) && (cmd.Unpack == nil || *cmd.Unpack) {
			return fmt.Errorf("ADD does not unpack %.80q: COPY it, and RUN tar", source)
		}
	}
	return c.files(files{cmd.SourcesAndDest, cmd.Chown, cmd.Chmod, cmd.ExcludePatterns})
}

var archiveName = regexp.MustCompile(`\.(tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$`)

func (c *converter) copyFiles(cmd *instructions.CopyCommand) error {
	switch {
	case cmd.From != "":
		return fmt.Errorf("COPY --from is not supported: files come from the context alone")
	case cmd.Parents:
		return fmt.Errorf("COPY --parents is not supported: name the directories")
	}
	return c.files(files{cmd.SourcesAndDest, cmd.Chown, cmd.Chmod, cmd.ExcludePatterns})
}

// files are the arguments of COPY and ADD.
type files struct {
	instructions.SourcesAndDest
	owner, mode string
	exclude     []string
}

var octal = regexp.MustCompile(`^[0-7]{3,4}$`)

func (c *converter) files(f files) error {
	if len(f.exclude) > 0 {
		return fmt.Errorf("--exclude is not supported: use .dockerignore")
	}
	dest, err := c.words.open(f.DestPath)
	if err != nil {
		return err
	}
	if len(f.SourcePaths)+len(f.SourceContents) > 1 && !strings.HasSuffix(dest, "/") {
		return fmt.Errorf("several sources need a destination that ends with a /")
	}
	owner, err := c.words.open(cmp.Or(f.owner, "root"))
	if err != nil {
		return err
	}
	mode, err := c.words.closed(f.mode)
	if err != nil {
		return err
	}
	if mode != "" && !octal.MatchString(mode) {
		return fmt.Errorf("--chmod=%.20s is not supported: use an octal number like 0755", mode)
	}
	for _, source := range f.SourcePaths {
		if source, err = c.words.closed(source); err != nil {
			return err
		}
		if source, err = inContext(source); err != nil {
			return err
		}
		c.add(wrenn.StepCopy, source, dest, owner, mode)
		c.plan.Steps[len(c.plan.Steps)-1].Source = source
	}
	for _, content := range f.SourceContents {
		text := content.Data
		if content.Expand {
			if text, err = c.words.raw(text); err != nil {
				return err
			}
		}
		name := path.Base(content.Path)
		c.add(wrenn.StepCopy, name, dest, owner, cmp.Or(mode, "0644"))
		last := &c.plan.Steps[len(c.plan.Steps)-1]
		last.Source, last.Inline = name, []byte(text)
	}
	return nil
}

// inContext returns a source as a path relative to the context. As in Docker, the
// context is the root: a slash at the start is allowed, and .. there stays.
func inContext(source string) (string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+source), "/")
	if !wrenn.IsText(source) {
		return "", fmt.Errorf("the source %.80q is not text", source)
	}
	return cmp.Or(clean, "."), nil
}
