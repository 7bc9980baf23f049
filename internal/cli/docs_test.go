package cli

import (
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/doctest"
	"wrenn.dev/internal/testkit"
)

// TestDocs: the command lines in the documentation are ones that wrenn takes.
func TestDocs(t *testing.T) {
	doctest.CheckCommands(t, func() any { return new(commandLine) }, "wrenn")
}

// TestSSHFlags: flags of ssh after the sandbox need no dashes before them.
func TestSSHFlags(t *testing.T) {
	for _, args := range [][]string{{"-L", "8000:localhost:8000", "-N"}, {"ls", "-l"}, {"-v", "--", "ls", "-o"}} {
		var line commandLine
		parser, err := kong.New(&line)
		testkit.Must(t, err)
		_, err = parser.Parse(append([]string{"sandbox", "ssh", "-u", "root", "web"}, args...))
		testkit.Must(t, err)
		if diff := cmp.Diff(args, line.Sandbox.SSH.Args); diff != "" || line.Sandbox.SSH.ID != "web" || line.Sandbox.SSH.User != "root" {
			t.Errorf("%q: %+v (-want +got):\n%s", args, line.Sandbox.SSH, diff)
		}
	}
}
