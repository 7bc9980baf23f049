package pgserver

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev/internal/testkit"
)

// TestLogFollowsNoLinks is about a server's user who puts links to files of root where
// the log and the old log are.
func TestLogFollowsNoLinks(t *testing.T) {
	dir, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	testkit.Must(t, os.WriteFile(secret, []byte("of root"), 0o600))
	for _, name := range []string{logName, oldName} {
		testkit.Must(t, os.Symlink(secret, filepath.Join(dir, name)))
	}
	l, err := openLog(dir, &owner{})
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, l.close()) })
	_, err = l.file.WriteString("of the server")
	testkit.Must(t, err)
	for range 2 { // the second time the log itself was replaced
		testkit.Must(t, l.rotate(0))
		testkit.Must(t, os.Remove(filepath.Join(dir, oldName)))
		testkit.Must(t, os.Symlink(secret, filepath.Join(dir, oldName)))
		testkit.Must(t, os.Remove(filepath.Join(dir, logName)))
		testkit.Must(t, os.Symlink(secret, filepath.Join(dir, logName)))
		if got := l.tail(); got == "of root" {
			t.Error("an error message would have the content of another file")
		}
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "of root" {
		t.Errorf("the other file is %q, %v", got, err)
	}
}

func TestLogIsRotated(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, &owner{})
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, l.close()) })
	first := bytes.Repeat([]byte("line\n"), 100)
	_, err = l.file.Write(first)
	testkit.Must(t, err)
	testkit.Must(t, l.rotate(int64(len(first))+1)) // too small
	if info, _ := l.file.Stat(); info.Size() != int64(len(first)) {
		t.Errorf("the log has %d bytes", info.Size())
	}
	testkit.Must(t, l.rotate(int64(len(first))))
	_, err = l.file.WriteString("after\n")
	testkit.Must(t, err)
	if got, err := os.ReadFile(filepath.Join(dir, oldName)); err != nil || !bytes.Equal(got, first) {
		t.Errorf("the old log has %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, logName)); err != nil || string(got) != "after\n" {
		t.Errorf("the log = %q, %v", got, err)
	}
}
