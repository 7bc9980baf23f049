package dockerfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

const everything = `# a comment
ARG VERSION=12
FROM debian:${VERSION}-slim
LABEL a=b
EXPOSE 80
ARG PORT=80 NEVER
ARG VERSION
ENV APP=/srv/app GREETING="a \"b\" \$c" FROM_IMAGE=$PATH:/x
WORKDIR $APP
RUN echo $APP \
  && true
RUN ["echo", "it's", "$x"]
COPY --chown=user:$GROUP --chmod=755 a b* dir/
COPY . ${APP:-/none}/copy
ADD z.txt $NEVER/
USER ${PORT}
SHELL ["/bin/bash", "-e", "-c"]
RUN <<EOF
one
two
EOF
RUN cat <<EOF > x
in
EOF
COPY <<"EOF" /etc/motd
Hi $APP
EOF
ENTRYPOINT ["serve", "-p"]
CMD ["80"]
`

func TestParse(t *testing.T) {
	sh := []string{"/bin/sh", "-c"}
	plan, err := Parse(strings.NewReader(everything), map[string]string{"PORT": "8080"})
	if err != nil {
		t.Fatal(err)
	}
	step := func(kind string, args ...string) Step {
		return Step{BuildStep: client.BuildStep{Kind: kind, Args: args}}
	}
	run := func(shell []string, command string) Step {
		return Step{BuildStep: client.BuildStep{Kind: "RUN", Args: []string{command}, Shell: shell}}
	}
	files := func(s Step, source string) Step { s.Source = source; return s }
	motd := files(step("COPY", "motd", "/etc/motd", "root", "0644"), "motd")
	motd.Args[0], motd.Source = "EOF", "EOF" // the file's name before it is copied
	motd.Inline = []byte("Hi $APP\n")
	want := &Plan{
		From: "debian:12-slim", StartCmd: `exec 'serve' '-p' '80'`,
		Notices: []string{"line 4: LABEL is ignored: a template has nothing like it", "line 5: EXPOSE is ignored: a template has nothing like it"},
		Steps: []Step{
			step("ARG", "PORT", "8080"),
			step("ARG", "VERSION", "12"),
			step("ENV", "APP", "/srv/app", "GREETING", `a \"b\" \$c`, "FROM_IMAGE", "${PATH}:/x"),
			step("WORKDIR", "/srv/app"),
			run(sh, "echo $APP   && true"),
			run(sh, `exec 'echo' 'it'\''s' '$x'`),
			files(step("COPY", "a", "dir/", "user:${GROUP}", "755"), "a"),
			files(step("COPY", "b*", "dir/", "user:${GROUP}", "755"), "b*"),
			files(step("COPY", ".", "/srv/app/copy", "root", ""), "."),
			files(step("COPY", "z.txt", "${NEVER}/", "root", ""), "z.txt"),
			step("USER", "8080"),
			run([]string{"/bin/bash", "-e", "-c"}, "one\ntwo\n"),
			run([]string{"/bin/bash", "-e", "-c"}, "cat <<EOF > x\nin\nEOF"),
			motd,
		},
	}
	if diff := cmp.Diff(want, plan); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestStartCommand(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"CMD a && b":                   "a && b",
		`CMD ["a", "b"]`:               "exec 'a' 'b'",
		"ENTRYPOINT a\nCMD b":          "a",
		"ENTRYPOINT [\"a\"]\nCMD b $c": "exec 'a' '/bin/sh' '-c' 'b $c'",
		"CMD a\nENTRYPOINT [\"b\"]":    "exec 'b'",
	} {
		plan, err := Parse(strings.NewReader("FROM x\n"+text), nil)
		if err != nil || plan.StartCmd != want {
			t.Errorf("%q: %+v, %v; want %q", text, plan, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"":                          "no instructions",
		"RUN true":                  "no build stage",
		"FROM a\nFROM b":            "line 2: a second FROM",
		"FROM scratch":              "scratch",
		"FROM $NONE":                "is not set",
		"FROM a\nCOPY --from=b c d": "line 2: COPY --from",
		"FROM a\nRUN --mount=type=cache,target=/x true": "RUN --mount",
		"FROM a\nADD https://example.com/x /x":          "RUN a download",
		"FROM a\nADD x.tar.gz /x":                       "does not unpack",
		"FROM a\nCOPY a b c":                            "ends with a /",
		"FROM a\nCOPY --chmod=u+x a b":                  "octal",
		"FROM a\nCOPY $HERE b":                          "$HERE is not set",
		"FROM a\nONBUILD RUN true":                      "ONBUILD",
		"FROM a\nNOSUCH b":                              "unknown instruction",
		"FROM a\nENV A=${B!}":                           "modifier",
		strings.Repeat("#", maxBytes+1):                 "longer",
	} {
		if _, err := Parse(strings.NewReader(text), nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60q: %v, want %q", text, err, says)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(everything)
	f.Add("FROM a\nENV A=$B\nCOPY --chown=$A a ${A:-b}/\nCMD [\"a\"]")
	f.Fuzz(func(t *testing.T, text string) {
		plan, err := Parse(strings.NewReader(text), nil)
		if err != nil {
			return
		}
		for _, step := range plan.Steps {
			for _, arg := range step.Args {
				if strings.Contains(arg, markStart) && !strings.Contains(text, markStart) {
					t.Errorf("%s has a mark: %q", step.Kind, step.Args)
				}
			}
			if strings.HasPrefix(step.Source, "/") || strings.HasPrefix(step.Source+"/", "../") {
				t.Errorf("COPY reads %q", step.Source)
			}
		}
	})
}

// contextOf makes a directory with files, and opens it.
func contextOf(t *testing.T, files ...string) (*Context, string) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		path := filepath.Join(dir, name)
		testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testkit.Must(t, os.WriteFile(path, []byte(content), 0o600))
	}
	c, err := OpenContext(dir, nil)
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, c.Close()) })
	return c, dir
}

func copyStep(source string) Step {
	return Step{Source: source, BuildStep: client.BuildStep{Kind: "COPY", Args: []string{source, "/app/"}}}
}

func TestContext(t *testing.T) {
	c, dir := contextOf(t, ".dockerignore=*.log\nsecret\n!secret/public", "a.txt=a", "b.log=b", "src/b.py=b", "src/c.log=c", "src/lib/d.py=d", "secret/key=k", "secret/public=p")
	testkit.Must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "src", "link")))
	const src = "src/ src/b.py src/c.log src/lib/ src/lib/d.py src/link>/etc/passwd"
	for source, want := range map[string]string{
		"a.txt": "a.txt", "src": src, "*.txt": "a.txt", "src/*.py": "src/b.py", "secret": "secret/public",
		".": ".dockerignore a.txt secret/public " + src,
	} {
		files, err := c.Files(copyStep(source))
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		var buf bytes.Buffer
		testkit.Must(t, files.Archive(&buf))
		if got := entries(t, &buf); got != want {
			t.Errorf("%s: %s, want %s", source, got, want)
		}
	}
	for _, source := range []string{"none", "secret/key", "*.log"} {
		if _, err := c.Files(copyStep(source)); err == nil {
			t.Errorf("%s is copied", source)
		}
	}
}

func entries(t *testing.T, archive io.Reader) string {
	t.Helper()
	unzipped, err := gzip.NewReader(archive)
	testkit.Must(t, err)
	var out []string
	for r := tar.NewReader(unzipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(out, " ")
		}
		testkit.Must(t, err)
		name := h.Name
		if h.Linkname != "" {
			name += ">" + h.Linkname
		}
		out = append(out, name)
	}
}

func TestHash(t *testing.T) {
	hash := func(source string, files ...string) string {
		t.Helper()
		c, _ := contextOf(t, files...)
		f, err := c.Files(copyStep(source))
		testkit.Must(t, err)
		return f.Hash
	}
	base := hash("d", "d/a=1", "other=x")
	if base != hash("d", "d/a=1", "other=y") || len(base) != 64 {
		t.Error("another file changes the hash")
	}
	for name, other := range map[string]string{"content": hash("d", "d/a=2"), "name": hash("d", "d/b=1"), "source": hash("d/a", "d/a=1"), "more": hash("d", "d/a=1", "d/b=")} {
		if other == base {
			t.Errorf("%s does not change the hash", name)
		}
	}
}
