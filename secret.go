package wrenn

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// SecretID names a secret: "sec_" and 20 characters of [a-z0-9]. No secret has such a name.
type SecretID string

const (
	secretIDPrefix = "sec_"
	// MaxSecretBytes bounds the value of a secret.
	MaxSecretBytes        = 32 << 10
	maxSecretName         = 128
	maxSecretMetadata     = 32
	maxSecretKey          = 128
	maxSecretText         = 1024
	maxSecretMetadataSize = 8192
)

// NewSecretID returns a fresh random id (about 103 bits).
func NewSecretID() SecretID { return SecretID(secretIDPrefix + newID("")[:idLen-1]) }

// IsSecretID reports whether a text has the form of an id.
func IsSecretID(text string) bool {
	rest, ok := strings.CutPrefix(text, secretIDPrefix)
	return ok && len(rest) == idLen-1 && strings.Trim(rest, idAlphabet) == ""
}

// Secret is a secret of a team, without its value, which no call returns.
type Secret struct {
	ID        SecretID
	Name      string // see ParseSecretName; a team has one of each name
	Version   int    // of the value, from 1
	Metadata  map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
}

// ParseSecretName returns the name of a secret in lower case, or an Invalid error.
func ParseSecretName(text string) (string, error) {
	name := strings.ToLower(text)
	bad := func(c rune) bool { return c == '{' || c == '}' || unicode.IsControl(c) }
	switch {
	case name == "" || len(name) > maxSecretName || !utf8.ValidString(text) || strings.ContainsFunc(name, bad):
		return "", Errorf(Invalid, "the name of a secret has 1 to %d bytes of UTF-8, without {, } and control characters", maxSecretName)
	case strings.HasPrefix(name, secretIDPrefix):
		return "", Errorf(Invalid, "the name of a secret does not begin with %s, as ids do", secretIDPrefix)
	}
	return name, nil
}

// CheckSecret returns an Invalid error for a value or metadata that no secret may have.
// The error repeats nothing of the value.
func CheckSecret(value string, metadata map[string]string) error {
	if value == "" || len(value) > MaxSecretBytes {
		return Errorf(Invalid, "the value of a secret has 1 to %d bytes", MaxSecretBytes)
	}
	if len(metadata) > maxSecretMetadata {
		return Errorf(Invalid, "a secret has at most %d entries of metadata", maxSecretMetadata)
	}
	size := 0
	for key, text := range metadata {
		if key == "" || len(key) > maxSecretKey || len(text) > maxSecretText || strings.ContainsRune(key+text, 0) {
			return Errorf(Invalid, "a key of metadata has 1 to %d bytes and its value at most %d, without zero bytes", maxSecretKey, maxSecretText)
		}
		size += len(key) + len(text)
	}
	if size > maxSecretMetadataSize {
		return Errorf(Invalid, "the metadata of a secret has at most %d bytes", maxSecretMetadataSize)
	}
	return nil
}
