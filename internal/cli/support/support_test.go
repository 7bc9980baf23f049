package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// secrets is a text whose every S3CRET must go.
const secrets = `url = 'https://user:S3CRET@example.com/x' # kept
key = 'e2b_S3CRET'
  key = "S3CRET"
password="S3CRET" user=me
msg="x" token=S3CRET
{"access_key": "S3CRET", "a": 1}
AWS_SECRET_ACCESS_KEY=S3CRET with spaces
Authorization: Bearer S3CRET
X-API-Key: S3CRET
sent bearer S3CRET to the server
the key e2b_S3CRET was used
registry_password_file = "/S3CRET"
-----BEGIN EC PRIVATE KEY-----
S3CRET
-----END EC PRIVATE KEY-----
postgres://wrenn:S3CRET@/wrenn?host=/run
`

func TestRedact(t *testing.T) {
	hexes := strings.Repeat("0123456789abcdef", 3)
	got := string(Redact([]byte(secrets + "id=" + hexes + "\nkept\n" + "token: S3CRET" + strings.Repeat("S3CRET", maxLine) + "\nlast")))
	if strings.Contains(got, "S3CRET") || strings.Contains(got, hexes) {
		t.Errorf("a secret is left:\n%.2000s", got)
	}
	for _, kept := range []string{"example.com/x' # kept\n", "the key " + removed + " was used", "\nkept\n", "\nlast", "sent bearer " + removed + " to the server"} {
		if !strings.Contains(got, kept) {
			t.Errorf("%q is lost:\n%.2000s", kept, got)
		}
	}
	for _, text := range []string{"", "\n", "a", "a\n", "ERROR msg=\"cannot write journal\" file=/var/lib/wrenn/sandboxes/iabcdefghijklmnopqrst/machine/memory err=\"no space\"\n"} {
		if got := string(Redact([]byte(text))); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte(secrets))
	f.Fuzz(func(t *testing.T, text []byte) {
		Redact(append(text, '\n'))
	})
}

func TestWrite(t *testing.T) {
	log := filepath.Join(t.TempDir(), "a.log")
	testkit.Must(t, os.WriteFile(log, []byte("first\n"+strings.Repeat("a line\n", maxPart/7)+"password=S3CRET\nend\n"), 0o600))
	var out bytes.Buffer
	testkit.Must(t, Write(t.Context(), &out, "dir", []Part{
		File("logs/a.log", log), File("absent", log+".absent"), File("bad", filepath.Dir(log)),
		{"half", func(context.Context) ([]byte, error) { return []byte("some"), errors.New("token=S3CRET") }},
	}, time.Unix(1, 0)))
	unpacked, err := gzip.NewReader(&out)
	testkit.Must(t, err)
	archive := tar.NewReader(unpacked)
	got := map[string]string{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		testkit.Must(t, err)
		text, err := io.ReadAll(archive)
		testkit.Must(t, err)
		got[header.Name] = string(text)
	}
	text := got["dir/logs/a.log"]
	if strings.Contains(text, "first") || !strings.HasPrefix(text, "a line\n") || !strings.HasSuffix(text, "password=[removed]\nend\n") {
		t.Errorf("the log: %.30q … %q", text, text[max(0, len(text)-40):])
	}
	delete(got, "dir/logs/a.log")
	want := map[string]string{"dir/half": "some", "dir/errors.txt": "bad: " + filepath.Dir(log) + " is no regular file\nhalf: token=[removed]\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
