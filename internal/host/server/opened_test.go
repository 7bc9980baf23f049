package server

import (
	"testing"

	"wrenn.dev"
)

func TestOpened(t *testing.T) {
	const one, two = wrenn.SandboxID("one"), wrenn.SandboxID("two")
	var o opened
	var last func()
	for range maxOpen {
		done, err := o.add(one)
		if err != nil {
			t.Fatal(err)
		}
		last = done
	}
	if _, err := o.add(one); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("one more = %v", err)
	}
	done, err := o.add(two)
	if err != nil {
		t.Errorf("another sandbox: %v", err)
	}
	last()
	last() // twice counts once
	if _, err := o.add(one); err != nil {
		t.Errorf("after one ended: %v", err)
	}
	if _, err := o.add(one); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("one more again = %v", err)
	}
	done()
	if _, ok := o.counts[two]; ok {
		t.Error("a sandbox with nothing open is remembered")
	}
}
