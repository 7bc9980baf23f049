package wrenn

import (
	"crypto/rand"
	"strings"
)

// SandboxID names a sandbox: "i" and 20 characters of [a-z0-9]. It fits a DNS
// label, a path element and the E2B form of an id.
type SandboxID string

// CheckpointID names a checkpoint of a sandbox: "s" and 20 characters of [a-z0-9].
type CheckpointID string

// VolumeID names a volume: "v" and 20 characters of [a-z0-9].
type VolumeID string

const (
	sandboxIDPrefix    = "i"
	checkpointIDPrefix = "s"
	volumeIDPrefix     = "v"
	idLen              = 21
	idAlphabet         = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// NewSandboxID returns a fresh random id (about 103 bits).
func NewSandboxID() SandboxID { return SandboxID(newID(sandboxIDPrefix)) }

// NewCheckpointID returns a fresh random id (about 103 bits).
func NewCheckpointID() CheckpointID { return CheckpointID(newID(checkpointIDPrefix)) }

// NewVolumeID returns a fresh random id (about 103 bits).
func NewVolumeID() VolumeID { return VolumeID(newID(volumeIDPrefix)) }

func newID(prefix string) string {
	var b strings.Builder
	b.WriteString(prefix)
	buf := make([]byte, 32)
	for b.Len() < idLen {
		rand.Read(buf) // never fails, see crypto/rand
		for _, c := range buf {
			// 252 is the largest multiple of 36 in a byte: above it the letters would not be equally likely.
			if c < 252 && b.Len() < idLen {
				b.WriteByte(idAlphabet[int(c)%len(idAlphabet)])
			}
		}
	}
	return b.String()
}

// ParseSandboxID returns s as an id, or an Invalid error. Every id from outside is
// parsed before it names a file or a process.
func ParseSandboxID(s string) (SandboxID, error) {
	if !isID(s, sandboxIDPrefix) {
		return "", Errorf(Invalid, "%.64q is not a sandbox id: that is %q and 20 characters of a-z and 0-9", s, sandboxIDPrefix)
	}
	return SandboxID(s), nil
}

// ParseVolumeID returns s as an id, or an Invalid error.
func ParseVolumeID(s string) (VolumeID, error) {
	if !isID(s, volumeIDPrefix) {
		return "", Errorf(Invalid, "%.64q is not a volume id: that is %q and 20 characters of a-z and 0-9", s, volumeIDPrefix)
	}
	return VolumeID(s), nil
}

// ParseCheckpointID returns s as an id, or an Invalid error.
func ParseCheckpointID(s string) (CheckpointID, error) {
	if !isID(s, checkpointIDPrefix) {
		return "", Errorf(Invalid, "%.64q is not a checkpoint id: that is %q and 20 characters of a-z and 0-9", s, checkpointIDPrefix)
	}
	return CheckpointID(s), nil
}

func isID(s, prefix string) bool {
	return len(s) == idLen && strings.HasPrefix(s, prefix) && strings.Trim(s, idAlphabet) == ""
}
