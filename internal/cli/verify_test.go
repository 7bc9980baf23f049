package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/client"
	"wrenn.dev/internal/cli/verify"
)

func TestForkReport(t *testing.T) {
	report := &verify.Report{
		Parent: "ip", Copies: []string{"ia", "ib"}, Guest: map[string]string{"python": "3.11\x1b[31m"},
		Results: []verify.Result{
			{Group: "kernel", Title: "boot_id", Verdict: verify.Failed, Found: "the same in ia, ib"},
			{Group: "Python", Title: "random", Verdict: verify.Warning, Found: "the same in all 3", See: "page#a", Do: "seed again"},
			{Group: "Python", Title: "openssl", Verdict: verify.Warning, Found: "the same in all 3", See: "page#a", Do: "seed again"},
			{Group: "Node", Title: "randomUUID", Verdict: verify.Skipped, Found: "the guest has no node"},
		},
	}
	const want = `parent  ip
copies  ia ib
guest   python 3.11�[31m · node none · openssl none

kernel
  FAILED   boot_id                                     the same in ia, ib

Python
  warning  random                                      the same in all 3
  warning  openssl                                     the same in all 3

Node
  skipped  randomUUID                                  the guest has no node

What is the same by nature, and what to do about it:
  page#a
    seed again

1 of 4 checks FAILED.
`
	var out bytes.Buffer
	s := &session{Std: Std{Out: &out, Environ: func(string) string { return "" }}}
	s.forkReport(&out, report)
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	report.Results = report.Results[1:]
	out.Reset()
	s.forkReport(&out, report)
	if !strings.HasSuffix(out.String(), "\nNothing repeats that must differ.\n") {
		t.Errorf("without a failure:\n%s", out.String())
	}
}

// Fork returns the copies that run even when others do not: the caller must delete them.
func TestForker(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Count int }
		if text, err := io.ReadAll(r.Body); err != nil || json.Unmarshal(text, &body) != nil || body.Count != 2 {
			t.Errorf("%s: %s, %v", r.URL, text, err)
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"sandboxes":[{"id":"ia"}],"errors":[{"id":"ib","code":"resource_exhausted","message":"the disk is full"}]}`)
	}))
	defer s.Close()
	c, err := client.New(client.Config{URL: s.URL, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := forker{c}.Fork(t.Context(), testID, 2)
	if diff := cmp.Diff([]string{"ia"}, ids); diff != "" || err == nil || !strings.Contains(err.Error(), "copy ib: the disk is full") {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
