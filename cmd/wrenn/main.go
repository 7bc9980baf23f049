// Command wrenn is Wrenn for people: it starts everything on one machine, and
// talks to the public API.
package main

import (
	"wrenn/internal/cli"
	"wrenn/internal/run"
)

func main() { run.Main(cli.Start) }
