// Command wrenn is the command line of Wrenn: it starts everything on one machine,
// and uses the public API.
package main

import (
	"wrenn.dev/internal/cli"
	"wrenn.dev/internal/run"
)

func main() { run.Main(cli.Start) }
