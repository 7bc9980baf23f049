package wire_test

import (
	"errors"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
)

// No path from a host to a user carries internals, whatever the code.
func TestNoInternalsOnTheWire(t *testing.T) {
	const internal = "read tcp 169.254.0.22:34228->169.254.0.21:49983: incomplete envelope"
	for _, code := range wrenn.Codes() {
		err := &wrenn.Error{Code: code, Message: "read output: " + internal, Err: errors.New(internal)}
		_, result := wire.ToResult(err)
		for path, text := range map[string]string{"ToConnect": wire.ToConnect(err).Error(), "ToResult": result, "FromConnect": wrenn.Errorf(code, "%s", result).PublicMessage()} {
			if strings.Contains(text, "169.254") || strings.Contains(text, "envelope") || strings.Contains(text, "tcp") {
				t.Errorf("%s of %s: %q", path, code, text)
			}
		}
	}
	if _, text := wire.ToResult(errors.New(internal)); text != "internal error" {
		t.Errorf("an error without a code is shown as %q", text)
	}
}
