package wrenn

import (
	"crypto/rand"
	"strings"
)

// SandboxID names a sandbox: "i" and 20 characters of [a-z0-9]. It fits a DNS
// label, a path element and the E2B form of an id.
type SandboxID string

const (
	sandboxIDPrefix = "i"
	sandboxIDLen    = 21
	idAlphabet      = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// NewSandboxID returns a fresh random id (about 103 bits).
func NewSandboxID() SandboxID {
	var b strings.Builder
	b.WriteString(sandboxIDPrefix)
	buf := make([]byte, 32)
	for b.Len() < sandboxIDLen {
		rand.Read(buf) // never fails, see crypto/rand
		for _, c := range buf {
			// 252 is the largest multiple of 36 in a byte: above it the letters would not be equally likely.
			if c < 252 && b.Len() < sandboxIDLen {
				b.WriteByte(idAlphabet[int(c)%len(idAlphabet)])
			}
		}
	}
	return SandboxID(b.String())
}

// ParseSandboxID returns s as an id, or an Invalid error. Everything that
// comes from outside goes through it before it names a file or a process.
func ParseSandboxID(s string) (SandboxID, error) {
	if len(s) != sandboxIDLen || !strings.HasPrefix(s, sandboxIDPrefix) || strings.Trim(s, idAlphabet) != "" {
		return "", Errorf(Invalid, "%.64q is not a sandbox id: it is %q and 20 characters of a-z and 0-9", s, sandboxIDPrefix)
	}
	return SandboxID(s), nil
}
