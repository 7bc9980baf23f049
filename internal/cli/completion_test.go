package cli

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// words are what the last of args may become, without remarks.
func words(t *testing.T, environ map[string]string, args ...string) []string {
	t.Helper()
	got := invoke(t, nil, environ, append([]string{"__complete", "--"}, args...)...)
	if got.code != 0 || got.err != "" {
		t.Errorf("completing %q: %+v", args, got)
	}
	out := []string{}
	for line := range strings.Lines(got.out) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		out = append(out, word)
	}
	return out
}

func TestComplete(t *testing.T) {
	s := server(t)
	url := "--url=" + s.URL
	box, none := []string{testID}, []string{}
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"commands":                           {[]string{"s"}, []string{"sandbox", "ssh-config", "secret", "support-bundle"}},
		"commands of commands":               {[]string{"sandbox", "re"}, []string{"resume"}},
		"aliases":                            {[]string{"sb", "pa"}, []string{"pause"}},
		"no such command":                    {[]string{"no", ""}, none},
		"hidden":                             {[]string{"__"}, none},
		"flags":                              {[]string{"sandbox", "create", "--mem"}, []string{"--memory"}},
		"flags of all":                       {[]string{"sandbox", "create", "--out"}, []string{"--output"}},
		"values":                             {[]string{"-o", ""}, []string{"text", "json"}},
		"values behind =":                    {[]string{"--output=j"}, []string{"--output=json"}},
		"values of no flag":                  {[]string{"--no=j"}, none},
		"shells":                             {[]string{"completion", "z"}, []string{"zsh"}},
		"sandboxes":                          {[]string{url, "sandbox", "exec", ""}, box},
		"address apart":                      {[]string{"--url", s.URL, "sandbox", "exec", "iabc"}, box},
		"others":                             {[]string{url, "sandbox", "exec", "ix"}, none},
		"behind flags":                       {[]string{url, "sandbox", "exec", "-e", "A=b", "-t", "--user", "bob", ""}, box},
		"behind a short flag with its value": {[]string{url, "sandbox", "exec", "-ubob", ""}, box},
		"value of any kind":                  {[]string{url, "sandbox", "exec", "--user", ""}, none},
		"one of some":                        {[]string{url, "sandbox", "kill", "other", ""}, box},
		"not twice":                          {[]string{url, "sandbox", "kill", testID, ""}, none},
		"no more than one":                   {[]string{url, "sandbox", "get", testID, ""}, none},
		"the sandbox's command":              {[]string{url, "sandbox", "exec", testID, ""}, none},
		"and its arguments":                  {[]string{url, "sandbox", "exec", testID, "--", "ls", "-"}, none},
		"checkpoints of which":               {[]string{url, "checkpoint", "restore", ""}, box},
		"checkpoints":                        {[]string{url, "checkpoint", "restore", testID, "s"}, []string{"s1", "s2", "s3", "s4", "s5"}},
		"checkpoints, not twice":             {[]string{url, "checkpoint", "rm", testID, "s1", "s3", ""}, []string{"s2", "s4", "s5"}},
		"what happens then":                  {[]string{"sandbox", "create", "--on-timeout", ""}, []string{"destroy", "pause", "pause_disk"}},
		"copy":                               {[]string{url, "sandbox", "cp", "here", "i"}, []string{testID + ":"}},
		"files of this machine":              {[]string{url, "sandbox", "cp", "./"}, none},
		"standard input":                     {[]string{url, "sandbox", "cp", "-", ""}, []string{testID + ":"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, words(t, here(s), test.args...)); diff != "" {
				t.Errorf("%q (-want +got):\n%s", test.args, diff)
			}
		})
	}
}

// TestCompleteIsSilent: while the user types, completion prints no errors and does not wait long.
func TestCompleteIsSilent(t *testing.T) {
	s := server(t)
	if got := words(t, map[string]string{"HOME": "/nonexistent"}, "sandbox", "get", ""); len(got) > 0 {
		t.Errorf("without a key: %q", got)
	}
	stuck := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(stuck.Close)
	if got := words(t, here(s), "--url", stuck.URL, "sandbox", "get", ""); len(got) > 0 {
		t.Errorf("without an answer: %q", got)
	}
}

// TestCompletionScripts runs the scripts in their shells, with a program in place
// of wrenn that records its arguments.
func TestCompletionScripts(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "it's wrenn")
	body := "#!/bin/sh\n[ \"$1 $2\" = '__complete --' ] || exit\nshift 2; echo \"$#:$*\" >>\"$ASKED\"\n" +
		"case \"$*\" in *'--output='*) echo --output=json ;; *cp*) printf 'ibox:\\trunning\\n' ;; *) printf 'alpha\\tfirst: one\\nbeta\\n' ;; esac\n"
	check(t, os.WriteFile(fake, []byte(body), 0o755))
	for _, test := range []struct{ shell, run, asked, want string }{
		{"bash", `COMP_LINE='wrenn sandbox exec '; COMP_POINT=${#COMP_LINE}; _wrenn; printf '%s\n' "${COMPREPLY[@]}"`, "3:sandbox exec ", "alpha\nbeta\n"},
		{"bash", `COMP_LINE='wrenn sandbox --output=j x'; COMP_POINT=24; _wrenn; printf '%s\n' "${COMPREPLY[@]}"`, "2:sandbox --output=j", "json\n"},
		{"zsh", `words=(wrenn sandbox exec ''); CURRENT=4; compadd() { print -rl -- "$@" }; compdef() {}; _wrenn`, "3:sandbox exec ", "-l\n-d\nshown\n--\nalpha\nbeta\n"},
		{"zsh", `words=(wrenn cp ''); CURRENT=3; compadd() { print -rl -- "$@" }; compdef() {}; _wrenn`, "2:cp ", "-S\n\n--\nibox:\n"},
		{"fish", `complete -C 'wrenn sandbox exec '`, "3:sandbox exec ", "alpha\tfirst: one\nbeta\n"},
		{"fish", `complete -C 'wrenn cp '`, "2:cp ", "ibox:\trunning\n"},
	} {
		t.Run(test.shell, func(t *testing.T) {
			testkit.Program(t, test.shell)
			asked := filepath.Join(t.TempDir(), "asked")
			script := strings.ReplaceAll(scriptOf(test.shell, fake), "compdef _wrenn wrenn\n", ":\n")
			cmd := exec.CommandContext(t.Context(), test.shell, "-c", script+"\n"+test.run)
			cmd.Env = append(os.Environ(), "ASKED="+asked, "HOME="+dir)
			out, err := cmd.Output()
			if err != nil || string(out) != test.want {
				t.Errorf("%s: %v, printed %q, want %q", test.run, err, out, test.want)
			}
			if got, err := os.ReadFile(asked); err != nil || string(got) != test.asked+"\n" {
				t.Errorf("%s: asked %q, %v, want %q", test.run, got, err, test.asked)
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		got := invoke(t, nil, nil, "completion", shell)
		if self, err := os.Executable(); err != nil || got.code != 0 || !strings.Contains(got.out, self) || strings.Contains(got.out, "WRENN") {
			t.Errorf("%s: %v, %+v", shell, err, got)
		}
	}
	if got := invoke(t, nil, nil, "completion", "csh"); got.code != 2 {
		t.Errorf("of another shell: %+v", got)
	}
}
