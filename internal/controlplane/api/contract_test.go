package api

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// TestContractIsSound checks the rules for each operation.
func TestContractIsSound(t *testing.T) {
	doc := spec(t)
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	public := map[string]bool{"getVersion": true, "getHealth": true, "getReady": true, "getContract": true, "getE2BContract": true, "getDocs": true, "createSession": true, "joinHost": true, "renewHost": true}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			name := method + " " + path
			if op.OperationID == "" || op.Summary == "" || len(op.Tags) == 0 {
				t.Errorf("%s has no id, summary or tag", name)
			}
			if op.Security == nil || (len(*op.Security) == 0) != public[op.OperationID] {
				t.Errorf("%s: security = %v; only health, readiness, documents, signing in and joining hosts are open", name, op.Security)
			}
			if op.Responses.Default() != nil {
				t.Errorf("%s has a default answer, which would hide unplanned answers", name)
			}
			for status, answer := range op.Responses.Map() {
				for media, content := range answer.Value.Content {
					if len(content.Examples) == 0 {
						t.Errorf("%s: %s has no example of %s", name, status, media)
					}
				}
			}
			if op.RequestBody == nil {
				continue
			}
			for media, content := range op.RequestBody.Value.Content {
				if len(content.Examples) == 0 {
					t.Errorf("%s has no example of its %s", name, media)
				}
			}
		}
	}
}

// TestAudit shows which calls are recorded.
func TestAudit(t *testing.T) {
	b := &stub{}
	s := serve(t, b, nil)
	for _, call := range []struct{ method, path, key string }{
		{"GET", "/v1/sandboxes", testKey},
		{"DELETE", "/v1/sandboxes/" + string(testID), "e2b_unknown"},
		{"DELETE", "/v1/sandboxes/" + string(testID), testKey},
		{"DELETE", "/v1/sandboxes/" + string(testID), readerKey},
		{"POST", "/v1/sandboxes?secret=x", testKey}, // the query is not recorded
	} {
		req, err := http.NewRequestWithContext(t.Context(), call.method, "http://"+s.address+call.path, nil)
		testkit.Must(t, err)
		req.Header.Set("X-Api-Key", call.key)
		req.Header.Set("X-Request-Id", "mine")
		resp, err := http.DefaultClient.Do(req)
		testkit.Must(t, err)
		testkit.Must(t, resp.Body.Close())
	}
	entry := service.AuditEntry{Team: testTeam, Key: testKeyID, Address: "127.0.0.1", RequestID: "mine"}
	var want []service.AuditEntry
	for _, e := range []struct {
		operation, path string
		status          int
	}{
		{"deleteSandbox", "/v1/sandboxes/" + string(testID), 204}, {"deleteSandbox", "/v1/sandboxes/" + string(testID), 403}, {"createSandbox", "/v1/sandboxes", 400},
	} {
		entry.Operation, entry.Path, entry.Status = e.operation, e.path, e.status
		want = append(want, entry)
	}
	testkit.WaitNoError(t, "the calls are recorded", func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if diff := cmp.Diff(want, b.audited, cmpopts.IgnoreFields(service.AuditEntry{}, "At")); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// TestErrorTable: every code of the product has an answer, and every code of
// the API is explained in the document.
// TestScopes shows that a key may be used for what it was made for only.
func TestScopes(t *testing.T) {
	s := serve(t, &stub{}, nil)
	doc := spec(t)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Security == nil || len(*op.Security) > 0 && len((*op.Security)[0]["apiKey"]) != 1 {
				t.Errorf("%s %s needs the scope that its key has to have", method, path)
				continue
			}
			allowed := len(*op.Security) == 0 || (*op.Security)[0]["apiKey"][0] == "read"
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.address+strings.NewReplacer("{", "", "}", "").Replace(path), nil)
			testkit.Must(t, err)
			req.Header.Set("X-Api-Key", readerKey)
			resp, err := http.DefaultClient.Do(req)
			testkit.Must(t, err)
			testkit.Must(t, resp.Body.Close())
			if (resp.StatusCode == http.StatusForbidden) == allowed {
				t.Errorf("%s %s with a key that may read: %d", method, path, resp.StatusCode)
			}
		}
	}
}

func TestErrorTable(t *testing.T) {
	all := []wrenn.Code{
		wrenn.Invalid, wrenn.NotFound, wrenn.AlreadyExists, wrenn.FailedPrecondition, wrenn.Exhausted, wrenn.PermissionDenied,
		wrenn.Unauthenticated, wrenn.Unavailable, wrenn.DeadlineExceeded, wrenn.Canceled, wrenn.Internal,
		wrenn.NoSpace, wrenn.GuestFailed, wrenn.CutByPause, wrenn.NotResponding,
	}
	for _, code := range all {
		if f, ok := byCode[code]; !ok || !f.code.Valid() {
			t.Errorf("%s is told as %q", code, f.code)
		}
	}
	if f := byCode[wrenn.NoSpace]; f.status != http.StatusInsufficientStorage || f.retryAfter != 0 {
		t.Errorf("a full disk of a sandbox is %d, to be repeated after %v", f.status, f.retryAfter)
	}
	if len(byCode) != len(all) {
		t.Errorf("%d codes are told, of %d", len(byCode), len(all))
	}
	text := spec(t).Info.Description
	for _, code := range spec(t).Components.Schemas["ErrorCode"].Value.Enum {
		if !strings.Contains(text, "`"+code.(string)+"`") {
			t.Errorf("the table of errors in the contract lacks %s", code)
		}
		if !oapi.ErrorCode(code.(string)).Valid() {
			t.Errorf("%s is not generated", code)
		}
	}
}

// TestStatesAreTheProducts: a state that the product gets must be in the contract.
func TestStatesAreTheProducts(t *testing.T) {
	for _, state := range wrenn.States() {
		if !oapi.State(state).Valid() {
			t.Errorf("the contract has no state %s", state)
		}
	}
}

func TestLimitsInTheText(t *testing.T) {
	for what, text := range map[string]string{"files/write": "104857600 bytes", "JSON": "JSON bodies: 2 MiB"} {
		if !strings.Contains(string(api.V1), text) {
			t.Errorf("the contract does not name the limit of %s as %q", what, text)
		}
	}
	if maxFile != 104857600 || maxJSON != 2*1024*1024 {
		t.Errorf("limits changed: files %d, JSON %d; change the contract too", maxFile, maxJSON)
	}
}

func TestRefusalOfAChoiceNamesItsWays(t *testing.T) {
	c, err := loadContract(api.V1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.parseFrame(false, []byte(`{"type":"attach"}`))
	want := "the body: missing property 'pid', or missing property 'session'"
	if got := failureOf(t.Context(), err).message; got != want {
		t.Errorf("the refusal is %q, want %q", got, want)
	}
}

func FuzzParseFrame(f *testing.F) {
	c, err := loadContract(api.V1)
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{
		`{"type":"start","cmd":"sh","args":["-c","x"],"env":{"A":"b"},"pty":{"cols":80,"rows":24},"stdin":true,"timeout_sec":1}`,
		`{"type":"attach","pid":1}`, `{"type":"attach"}`, `{"type":"attach","session":"c2Vzc2lvbi1vZi1hLWNsaWVudA"}`, `{"type":"stdin","data":"eA==","encoding":"base64"}`, `{"type":"stdin_close"}`,
		`{"type":"resize","cols":1,"rows":2}`, `{"type":"signal","signal":"SIGKILL"}`, `{"type":"stop"}`, `{"type":"ack","offset":1}`, `{"type":"leave"}`, `{"type":"start","Type":"stop","cmd":"x"}`, `[]`, "\x00hi",
	} {
		f.Add(false, []byte(text))
		f.Add(true, []byte(text))
	}
	f.Fuzz(func(t *testing.T, binary bool, text []byte) {
		frame, err := c.parseFrame(binary, text)
		if err != nil {
			if failureOf(t.Context(), err).status != 400 {
				t.Errorf("parseFrame(%q) = %v, which is not told as the client's fault", text, err)
			}
			return
		}
		switch frame.Type {
		case frameStart:
			if frame.Cmd == "" || frame.TimeoutSec < 0 || strings.ContainsRune(frame.Cmd, 0) {
				t.Errorf("parseFrame(%q) took a command that cannot be run: %+v", text, frame)
			}
		case frameAttach:
			if frame.PID < 1 && frame.Session == "" {
				t.Errorf("parseFrame(%q) took an attach to nothing", text)
			}
		case frameResize:
			if frame.Cols < 1 || frame.Rows < 1 || frame.Cols > 65535 || frame.Rows > 65535 {
				t.Errorf("parseFrame(%q) took the size %dx%d", text, frame.Cols, frame.Rows)
			}
		case frameSignal:
			if frame.Signal != "SIGTERM" && frame.Signal != "SIGKILL" {
				t.Errorf("parseFrame(%q) took the signal %q", text, frame.Signal)
			}
		case frameStdin, frameStdinClose, frameStop, frameAck, frameLeave:
		default:
			t.Errorf("parseFrame(%q) made a frame %q", text, frame.Type)
		}
	})
}
