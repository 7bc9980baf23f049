// Package recent is a small cache of what was learned a moment ago: bounded in
// time and in size.
package recent

import (
	"sync"
	"time"
)

// Cache has values for a while. The zero Cache has none and keeps none: make one
// with New. It is safe for concurrent use.
type Cache[K comparable, V any] struct {
	max int
	ttl time.Duration

	mu  sync.Mutex // guards all
	all map[K]entry[V]
}

type entry[V any] struct {
	value V
	until time.Time
}

// New returns a cache that has at most so many values, each for ttl after its Put.
func New[K comparable, V any](most int, ttl time.Duration) *Cache[K, V] {
	return &Cache[K, V]{max: most, ttl: ttl, all: map[K]entry[V]{}}
}

// Get returns the value of the key, if it is not too old at now.
func (c *Cache[K, V]) Get(key K, now time.Time) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.all[key]
	if !ok || now.After(e.until) {
		return value, false
	}
	return e.value, true
}

// Put sets the value of the key. In a full cache it takes the place of one that is
// too old, else of any.
func (c *Cache[K, V]) Put(key K, value V, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, has := c.all[key]; !has && len(c.all) >= c.max {
		c.makeRoom(now)
	}
	c.all[key] = entry[V]{value, now.Add(c.ttl)}
}

// maxLook bounds the search for one that is too old. Maps are walked in a random
// order, so that in the end all of these are found.
const maxLook = 16

// makeRoom is for a caller that holds mu.
func (c *Cache[K, V]) makeRoom(now time.Time) {
	looked := 0
	var victim K
	for key, e := range c.all {
		victim = key
		if looked++; looked == maxLook || now.After(e.until) {
			break
		}
	}
	delete(c.all, victim)
}

// Drop forgets the key.
func (c *Cache[K, V]) Drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, key)
}
