package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// text returns the characters of an SVG's elements of that name, and fails for what a
// picture of a README must not have.
func text(t *testing.T, svg []byte, name string) []string {
	t.Helper()
	var all []string
	inside := 0
	decoder := xml.NewDecoder(bytes.NewReader(svg))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if strings.Contains(" script image use a foreignObject ", " "+token.Name.Local+" ") {
				t.Errorf("the picture has an element %s", token.Name.Local)
			}
			if token.Name.Local == name {
				inside++
				all = append(all, "")
			}
		case xml.EndElement:
			if token.Name.Local == name {
				inside--
			}
		case xml.CharData:
			if inside > 0 {
				all[len(all)-1] += string(token)
			}
		}
	}
}

// What a sandbox prints is text of the picture, whatever it contains.
func TestPicture(t *testing.T) {
	steps := []ran{
		{"echo '<b>' && true", "</text><script>\x1b[31m &amp;\x00\xff\n\n  last\n", time.Minute},
		{"true", "", 0},
	}
	svg := picture(steps)
	want := []string{"$ echo '<b>' && true", "</text><script>[31m &amp;", "", "  last", "$ true"}
	if got := text(t, svg, "text"); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("lines %q, want %q", got, want)
	}
	if got := text(t, svg, "desc"); len(got) != 1 || got[0] != strings.Join(want, "\n") {
		t.Errorf("text alternative %q, want %q", got, want)
	}
	if !bytes.Contains(svg, []byte("animation-delay:2.70s")) { // 0.7 s, and a minute that is cut to 2 s
		t.Errorf("no line appears after 2.7 s:\n%s", svg)
	}
}

// TestRecording: the picture of the README is what this program makes of its commands.
func TestRecording(t *testing.T) {
	svg, err := os.ReadFile("../../docs/recording.svg")
	if err != nil {
		t.Fatal(err)
	}
	if len(svg) > 16<<10 {
		t.Errorf("the picture has %d bytes", len(svg))
	}
	var commands []string
	for _, line := range text(t, svg, "text") {
		if len([]rune(line)) > columns {
			t.Errorf("%q does not fit into %d columns", line, columns)
		}
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			commands = append(commands, command)
		}
	}
	if strings.Join(commands, "\n") != strings.Join(session, "\n") {
		t.Errorf("the picture has the commands %q; run make recording, for %q", commands, session)
	}
	if got := text(t, svg, "style"); len(got) != 1 || got[0] != style {
		t.Errorf("the picture has the style %q; run make recording", got)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "](docs/recording.svg)") {
		t.Error("README.md does not show docs/recording.svg")
	}
}

func TestRun(t *testing.T) {
	steps, err := run(t.Context(), []string{"A=1", "echo $A; echo err >&2; printf x", "cat"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "1\nerr\nx", ""} {
		if steps[i].output != want {
			t.Errorf("command %d printed %q, want %q", i, steps[i].output, want)
		}
	}
	if _, err := run(t.Context(), []string{"echo why; false"}); err == nil || !strings.Contains(err.Error(), "exit code 1\nwhy") {
		t.Errorf("a command that fails: %v", err)
	}
	if _, err := run(t.Context(), []string{"exit 3"}); err == nil {
		t.Error("a shell that ends is no error")
	}
}
