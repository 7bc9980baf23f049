package programs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestLoginShell: a TERM that nothing describes is replaced, and no other one.
func TestLoginShell(t *testing.T) {
	home := t.TempDir()
	for name, text := range map[string]string{"bin/bash": "#!/bin/sh\necho \"$1 $TERM\"\n", ".terminfo/x/xterm-own": ""} {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for term, want := range map[string]string{"xterm-unheard-of": "xterm-256color", "xterm-own": "xterm-own", "dumb": "dumb", "": ""} {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", LoginShell)
		cmd.Env = []string{"HOME=" + home, "PATH=" + home + "/bin", "TERM=" + term, "known=1"}
		if out, err := cmd.CombinedOutput(); string(out) != "-l "+want+"\n" || err != nil {
			t.Errorf("TERM %q: %q, %v; want %q", term, out, err, want)
		}
	}
}
