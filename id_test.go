package wrenn

import (
	"errors"
	"fmt"
	"testing"
)

func TestNewSandboxIDParses(t *testing.T) {
	seen := map[SandboxID]bool{}
	for range 1000 {
		id := NewSandboxID()
		if got, err := ParseSandboxID(string(id)); err != nil || got != id {
			t.Fatalf("ParseSandboxID(%q) = %q, %v", id, got, err)
		}
		if seen[id] {
			t.Fatalf("id %q came twice", id)
		}
		seen[id] = true
	}
}

func TestParseSandboxIDRefuses(t *testing.T) {
	for _, s := range []string{"", "i", "../../../../../../../", "iABCDEFGHIJKLMNOPQRST", "xabcdefghijklmnopqrst", "iabcdefghijklmnopqrst0", "iabcdefghij/lmnopqrst", "iabcdefghij\x00lmnopqrst"} {
		if _, err := ParseSandboxID(s); CodeOf(err) != Invalid {
			t.Errorf("ParseSandboxID(%q) = %v, want code %s", s, err, Invalid)
		}
	}
}

func FuzzParseSandboxID(f *testing.F) {
	f.Add("iabcdefghijklmnopqrst")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseSandboxID(s)
		if err == nil && string(id) != s {
			t.Fatalf("ParseSandboxID(%q) = %q", s, id)
		}
	})
}

func TestErrorKeepsCodeAndCause(t *testing.T) {
	cause := errors.New("disk on fire")
	err := fmt.Errorf("create: %w", &Error{Code: Unavailable, Message: "try again", Err: cause})
	if CodeOf(err) != Unavailable || !errors.Is(err, cause) {
		t.Errorf("CodeOf(%v) = %s, Is(cause) = %t", err, CodeOf(err), errors.Is(err, cause))
	}
	if got := err.Error(); got != "create: try again: disk on fire" {
		t.Errorf("Error() = %q", got)
	}
	if CodeOf(nil) != "" || CodeOf(cause) != Internal {
		t.Errorf("CodeOf(nil) = %q, CodeOf(plain) = %q", CodeOf(nil), CodeOf(cause))
	}
}
