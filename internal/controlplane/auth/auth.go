// Package auth makes and parses API keys, and the secrets of those who have signed in with one. A key is "e2b_" and 40 hexadecimal digits:
// 160 random bits, of which the database has the SHA-256 and the first digits, as a
// hint for people.
package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
	"time"
)

const (
	prefix    = "e2b_" // SDKs of the E2B protocol insist on it
	randomLen = 20     // bytes
	hintLen   = len(prefix) + 4
)

// Secret is a new key. It is shown once and never logged.
type Secret string

// NewSecret returns a fresh key.
func NewSecret() Secret {
	var b [randomLen]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return Secret(prefix + hex.EncodeToString(b[:]))
}

// Hint returns the first characters, which lists of keys show.
func (s Secret) Hint() string { return string(s[:hintLen]) }

// String keeps secrets out of logs and errors.
func (s Secret) String() string { return "[secret]" }

// Hash is the form in which a key is stored.
type Hash [sha256.Size]byte

// HashOf returns the hash of a key, and false for text that is not a key.
func HashOf(secret string) (Hash, bool) {
	digits, ok := strings.CutPrefix(secret, prefix)
	if !ok || len(digits) != 2*randomLen || strings.Trim(digits, "0123456789abcdef") != "" {
		return Hash{}, false
	}
	return sha256.Sum256([]byte(secret)), true
}

// Session is what a browser that is signed in holds, in two places: Cookie where no
// script can read it, and Proof where pages of other origins, and servers on other
// ports of the same machine, never see it. Neither is of use without the other.
type Session struct{ Cookie, Proof Secret }

// NewSession returns a fresh pair, each of 160 random bits in hexadecimal digits.
func NewSession() Session {
	var b [2 * randomLen]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return Session{Cookie: Secret(hex.EncodeToString(b[:randomLen])), Proof: Secret(hex.EncodeToString(b[randomLen:]))}
}

// HashOfSession returns the hash of the pair, and false for texts that cannot be one.
func HashOfSession(cookie, proof string) (Hash, bool) {
	for _, text := range []string{cookie, proof} {
		if len(text) != 2*randomLen || strings.Trim(text, "0123456789abcdef") != "" {
			return Hash{}, false
		}
	}
	return sha256.Sum256([]byte(cookie + "." + proof)), true
}

// Cache keeps a value for each key for a while. It is safe for concurrent use.
type Cache[T any] struct {
	ttl  time.Duration
	size int

	mu      sync.Mutex // guards entries
	entries map[Hash]entry[T]
}

type entry[T any] struct {
	value T
	until time.Time
}

// NewCache returns a cache of at most size keys, each for ttl.
func NewCache[T any](size int, ttl time.Duration) *Cache[T] {
	return &Cache[T]{ttl: ttl, size: size, entries: map[Hash]entry[T]{}}
}

// Get returns the value of a key that Put stored less than the ttl ago.
func (c *Cache[T]) Get(h Hash) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[h]
	if !ok || !time.Now().Before(e.until) {
		delete(c.entries, h)
		var none T
		return none, false
	}
	return e.value, true
}

// Put stores the value of a key. A full cache drops everything first: refilling it
// costs a read for each key, and it fills only when more keys are in use than its size.
func (c *Cache[T]) Put(h Hash, value T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= c.size {
		clear(c.entries)
	}
	c.entries[h] = entry[T]{value: value, until: time.Now().Add(c.ttl)}
}

// Drop drops a key.
func (c *Cache[T]) Drop(h Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, h)
}

// Forget drops the keys for whose values drop returns true.
func (c *Cache[T]) Forget(drop func(T) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for h, e := range c.entries {
		if drop(e.value) {
			delete(c.entries, h)
		}
	}
}
