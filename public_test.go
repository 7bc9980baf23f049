package wrenn

import (
	"errors"
	"fmt"
	"testing"
)

// leaks are errors whose text users must not read.
var leaks = []string{
	"read output: protocol error: incomplete envelope: read tcp 169.254.0.22:34228->169.254.0.21:49983: read: connection timed out",
	"dial tcp 10.1.2.3:443: connect: connection refused", "dial unix /run/wrenn/agent.sock: connect: no such file or directory",
	"the network slot was released", "write tcp4 1.2.3.4:5->6.7.8.9:10: use of closed network connection", "i/o timeout",
	"freeze guest: context deadline exceeded", "context canceled", "http2: client connection lost", "net/http: HTTP/1.x transport connection broken",
	"qmp cont: the QMP connection is closed", "read output: unexpected EOF", "ERROR: duplicate key (SQLSTATE 23505)", "",
}

// No code lets internals through, and each has its words for them.
func TestPublicMessageHidesInternals(t *testing.T) {
	seen := map[string]Code{}
	for _, code := range Codes() {
		general := (&Error{Code: code, Message: leaks[0]}).PublicMessage()
		if other, twice := seen[general]; twice || general == "" {
			t.Errorf("%s and %s both say %q", code, other, general)
		}
		seen[general] = code
		for _, text := range leaks {
			for _, message := range []string{text, "pause of sandbox i1: " + text} {
				if text == "" && message != "" {
					continue
				}
				e := &Error{Code: code, Message: message, Err: errors.New(text)}
				if got := e.PublicMessage(); got != general {
					t.Errorf("%s: %q is shown as %q", code, message, got)
				}
			}
		}
		if general != "internal error" && code == Internal {
			t.Errorf("internal says %q", general)
		}
	}
}

func TestPublicMessageKeepsWhatUsersNeed(t *testing.T) {
	for _, message := range []string{
		"sandbox i1 is paused: resume it first", "read /tmp/a: no such file or directory", "this host is at its limit of 50 sandboxes",
		Unresponsive{Reason: "nothing in it answers on its network"}.Refusal("i1").Message, "the port is not open: no program in the sandbox listens on it",
		"open /srv/169.254.0.21: no such file", fmt.Sprintf("%q is not a sandbox id", "dial"),
	} {
		if got := Errorf(Invalid, "%s", message).PublicMessage(); got != message {
			t.Errorf("%q is shown as %q", message, got)
		}
	}
}
