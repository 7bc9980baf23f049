package recent

import (
	"testing"
	"time"
)

func TestCache(t *testing.T) {
	now := time.Now()
	c := New[int, string](2, time.Second)
	if _, ok := c.Get(1, now); ok {
		t.Error("an empty cache has a value")
	}
	c.Put(1, "one", now)
	c.Put(2, "two", now.Add(2*time.Second))
	if v, ok := c.Get(1, now.Add(time.Second)); !ok || v != "one" {
		t.Errorf("Get(1) = %q, %v", v, ok)
	}
	if _, ok := c.Get(1, now.Add(time.Second+1)); ok {
		t.Error("a value that is too old is returned")
	}
	c.Put(3, "three", now.Add(3*time.Second)) // instead of one, which is too old, or, by chance, of two
	if len(c.all) != 2 {
		t.Errorf("it has %d values, want the 2 that fit", len(c.all))
	}
	if v, ok := c.Get(3, now.Add(3*time.Second)); !ok || v != "three" {
		t.Errorf("Get(3) = %q, %v", v, ok)
	}
	c.Put(3, "four", now)
	c.Drop(3)
	if _, ok := c.Get(3, now); ok {
		t.Error("a dropped value is returned")
	}
}
