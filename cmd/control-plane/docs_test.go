package main

import (
	"testing"

	"wrenn.dev/internal/doctest"
)

// TestDocs: the command lines in the documentation are ones that the program takes.
func TestDocs(t *testing.T) {
	doctest.CheckCommands(t, func() any { return new(commandLine) }, "control-plane", "wrenn-control-plane")
}
