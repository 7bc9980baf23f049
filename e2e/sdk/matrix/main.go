// Command matrix calls every method of published versions of E2B's SDKs against a
// Wrenn that runs, and keeps the outcomes in a file, from which it writes the table
// in docs/e2b.md.
//
// wrenn up starts it with WRENN_API_URL and WRENN_API_KEY set; see make sdk-matrix.
// Arguments select runs, as "python 2.63.0 domain" or parts of that; none is all. With
// -methods it calls those methods alone whose names have one of the words, which completes
// a run that ended early. With -table it only writes the table.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
)

// The ways to tell an SDK where Wrenn is.
const (
	byURL    = "url"    // one URL serves all
	byDomain = "domain" // each sandbox has its own names
)

// kind is an SDK or a program that is tested.
type kind struct {
	title   string   // in the table
	pip     string   // its package, or
	npm     string   // its package
	command []string // in the directory of its installation; %s is the directory of the programs
	before  string   // a program that prepares Wrenn for it

	// with is the version of package e2b for versions that do not work with the newest
	// one, although they accept it.
	with map[string]string
}

var kinds = map[string]kind{
	"python":                 {title: "Python `e2b`", pip: "e2b", command: []string{"bin/python", "%s/matrix.py"}},
	"javascript":             {title: "JavaScript `e2b`", npm: "e2b", command: []string{"node", "%s/matrix.mjs"}},
	"cli":                    {title: "`@e2b/cli`", npm: "@e2b/cli", command: []string{"python3", "%s/matrix-cli.py", "node_modules/@e2b/cli/dist/index.js"}},
	"python-interpreter":     {title: "Python `e2b-code-interpreter`", pip: "e2b-code-interpreter", command: []string{"bin/python", "%s/matrix-interpreter.py"}, before: "interpreter.sh", with: map[string]string{"2.0.0": "2.0.1"}},
	"python-mcp":             {title: "Python `e2b`: `mcp`", pip: "e2b", command: []string{"bin/python", "%s/matrix-mcp.py"}, before: "mcp.sh"},
	"javascript-interpreter": {title: "JavaScript `@e2b/code-interpreter`", npm: "@e2b/code-interpreter", command: []string{"node", "%s/matrix-interpreter.mjs"}, before: "interpreter.sh"},
}

// run is one version of a kind, called in one way.
type run struct{ kind, version, mode string }

func (r run) String() string { return r.kind + " " + r.version + " " + r.mode }

// outcome is what became of one method in one run, as the programs print it.
type outcome struct {
	Method  string  `json:"method"`
	Outcome string  `json:"outcome"` // pass, fail, refused (Wrenn says that it is not built) or absent (from this version)
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"-"`
}

// results are the outcomes of runs, by their names.
type results map[string][]outcome

// runs returns all runs. The oldest versions know no URLs.
func runs() (all []run) {
	for _, version := range []string{"2.0.1", "2.6.4", "2.25.1", "2.31.0", "2.45.1", "2.51.0", "2.55.1", "2.63.0"} {
		if version != "2.0.1" && version != "2.6.4" {
			all = append(all, run{"python", version, byURL})
		}
		all = append(all, run{"python", version, byDomain})
	}
	for _, version := range []string{"2.45.0", "2.49.1", "2.51.0"} {
		all = append(all, run{"javascript", version, byURL}, run{"javascript", version, byDomain})
	}
	all = append(all, run{"cli", "2.19.0", byURL}, run{"cli", "2.19.0", byDomain})
	return append(all,
		run{"python-mcp", "2.63.0", byDomain},
		run{"python-interpreter", "2.0.0", byDomain}, run{"python-interpreter", "2.11.5", byURL}, run{"python-interpreter", "2.11.5", byDomain},
		run{"javascript-interpreter", "2.0.0", byDomain}, run{"javascript-interpreter", "2.8.0", byURL}, run{"javascript-interpreter", "2.8.0", byDomain})
}

func main() {
	table := flag.Bool("table", false, "only write the table")
	domain := flag.String("domain", "sandbox.localhost:8443", "what wrenn up --domain was told")
	authority := flag.String("authority", "", "its certificate")
	methods := flag.String("methods", "", "words, separated by commas: call only the methods whose names have one of them, and keep the other outcomes of the runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	m := matrix{dir: "e2e/sdk", cache: ".cache/sdk", domain: *domain, authority: *authority}
	if *methods != "" {
		m.methods = strings.Split(*methods, ",")
	}
	if err := m.main(ctx, *table, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

// matrix runs the programs in dir, with the SDKs below cache.
type matrix struct {
	dir, cache, domain, authority string

	methods []string // words of the names of those that are called; none is all
}

func (m *matrix) main(ctx context.Context, onlyTable bool, wanted []string) error {
	file := filepath.Join(m.dir, "matrix.json")
	all, err := readResults(file)
	if err != nil {
		return err
	}
	var failed []string
	for _, r := range runs() {
		if onlyTable || !r.matches(wanted) {
			continue
		}
		outcomes, err := m.run(ctx, r)
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", r, err))
			continue
		}
		if m.methods != nil {
			outcomes = merge(all[r.String()], outcomes)
		}
		all[r.String()] = outcomes
		if err := writeResults(file, all); err != nil {
			return err
		}
		for _, o := range outcomes {
			if o.Outcome == "fail" {
				failed = append(failed, fmt.Sprintf("%s: %s\n%s", r, o.Method, o.Error))
			}
		}
	}
	if err := writeTable("docs/e2b.md", all); err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d failures:\n%s", len(failed), strings.Join(failed, "\n"))
	}
	return nil
}

// merge returns the outcomes of a run with those that are newer in their places, or at the end.
func merge(old, newer []outcome) []outcome {
	merged := slices.Clone(old)
	for _, o := range newer {
		at := slices.IndexFunc(merged, func(of outcome) bool { return of.Method == o.Method })
		if at < 0 {
			merged = append(merged, o)
		} else {
			merged[at] = o
		}
	}
	return merged
}

// matches reports whether each of the words is in the run's name.
func (r run) matches(words []string) bool {
	return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(r.String(), word) })
}

// run installs the SDK, once for all runs, and runs the program that uses it.
func (m *matrix) run(ctx context.Context, r run) ([]outcome, error) {
	fmt.Println(r)
	kind := kinds[r.kind]
	dir, err := filepath.Abs(filepath.Join(m.cache, r.kind+"-"+r.version))
	if err != nil {
		return nil, err
	}
	if err := install(ctx, dir, kind, r.version); err != nil {
		return nil, err
	}
	programs, err := filepath.Abs(m.dir)
	if err != nil {
		return nil, err
	}
	if kind.before != "" {
		prepare := exec.CommandContext(ctx, filepath.Join(programs, kind.before))
		prepare.Stdout, prepare.Stderr = os.Stderr, os.Stderr
		if err := prepare.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w", kind.before, err)
		}
	}
	return outcomesOf(kind.start(ctx, dir, programs, m.methods), m.env(r))
}

// start returns the command that calls methods of the SDK installed in dir: those whose
// names have one of the words, all without any.
func (k kind) start(ctx context.Context, dir, programs string, methods []string) *exec.Cmd {
	var words []string
	for _, word := range k.command {
		words = append(words, strings.ReplaceAll(word, "%s", programs))
	}
	if strings.HasPrefix(words[0], "bin/") {
		words[0] = filepath.Join(dir, words[0])
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], methods...)...)
	cmd.Dir = dir
	return cmd
}

// outcomesOf runs a command and reads what it prints.
func outcomesOf(cmd *exec.Cmd, env []string) ([]outcome, error) {
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	outcomes, err := readOutcomes(out)
	if err := cmp.Or(err, cmd.Wait()); err != nil {
		return nil, err
	}
	return outcomes, nil
}

// env tells an SDK where Wrenn is.
func (m *matrix) env(r run) []string {
	url := os.Getenv("WRENN_API_URL")
	key := "E2B_API_KEY=" + os.Getenv("WRENN_API_KEY")
	if r.mode == byURL {
		return []string{key, "E2B_API_URL=" + url, "E2B_SANDBOX_URL=" + url, "E2B_VOLUME_API_URL=" + url}
	}
	return []string{key, "E2B_DOMAIN=" + m.domain, "SSL_CERT_FILE=" + m.authority, "NODE_EXTRA_CA_CERTS=" + m.authority}
}

// readOutcomes reads what a program prints, and shows it.
func readOutcomes(r io.Reader) (all []outcome, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var o outcome
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return nil, fmt.Errorf("the program prints %q: %w", lines.Text(), err)
		}
		fmt.Printf("  %-8s %s\n", o.Outcome, o.Method)
		all = append(all, o)
	}
	return all, lines.Err()
}

// install installs the SDK into dir unless that was done.
func install(ctx context.Context, dir string, k kind, version string) error {
	installed := filepath.Join(dir, ".installed")
	if _, err := os.Stat(installed); err == nil {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil { // an incomplete installation
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	steps := [][]string{{"npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", k.npm + "@" + version}}
	if k.pip != "" {
		pip := []string{filepath.Join(dir, "bin/pip"), "install", "--quiet", "--disable-pip-version-check", k.pip + "==" + version}
		if with, ok := k.with[version]; ok {
			pip = append(pip, "e2b=="+with)
		}
		steps = [][]string{{"python3", "-m", "venv", "."}, pip}
	}
	for _, step := range steps {
		cmd := exec.CommandContext(ctx, step[0], step[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w\n%s", step, err, out)
		}
	}
	return os.WriteFile(installed, nil, 0o600)
}

func readResults(file string) (results, error) {
	all := results{}
	text, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(text, &all)
}

func writeResults(file string, all results) error {
	for _, outcomes := range all {
		for i := range outcomes {
			if outcomes[i].Outcome != "fail" {
				outcomes[i].Error = ""
			}
		}
	}
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644) //nolint:gosec // a file of the source tree
}

// The lines of the document between which the table is.
const (
	tableBegins = "<!-- matrix: written by make sdk-matrix -->\n"
	tableEnds   = "<!-- end of the matrix -->\n"
)

// writeTable replaces the table in the document.
func writeTable(file string, all results) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, begins := bytes.Cut(text, []byte(tableBegins))
	_, after, ends := bytes.Cut(rest, []byte(tableEnds))
	if !begins || !ends {
		return fmt.Errorf("%s has no place for the table", file)
	}
	next := slices.Concat(before, []byte(tableBegins), []byte(table(all)), []byte(tableEnds), after)
	return os.WriteFile(file, next, 0o644) //nolint:gosec // a file of the source tree
}

// table is a row for each run: how many methods have which outcome, and those that do
// not pass.
func table(all results) string {
	var out strings.Builder
	out.WriteString("\n| SDK | Told where by | Methods that pass | Not built | Not in this version | Fail |\n|---|---|---|---|---|---|\n")
	for _, r := range runs() {
		outcomes, known := all[r.String()]
		if !known {
			continue
		}
		of := func(kind string) (names []string) {
			for _, o := range outcomes {
				if o.Outcome == kind {
					names = append(names, strings.ReplaceAll(o.Method, "|", "\\|"))
				}
			}
			return names
		}
		mode := map[string]string{byURL: "one URL", byDomain: "a domain"}[r.mode]
		fmt.Fprintf(&out, "| %s %s | %s | %d | %s | %d | %s |\n", kinds[r.kind].title, r.version, mode, len(of("pass")), listed(of("refused")), len(of("absent")), listed(of("fail")))
	}
	out.WriteString("\n")
	return out.String()
}

// listed writes names in a cell.
func listed(names []string) string {
	if len(names) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d: `%s`", len(names), strings.Join(names, "`; `"))
}
