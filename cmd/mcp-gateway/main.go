// Command mcp-gateway serves the servers of the Model Context Protocol in a sandbox: the
// template mcp-gateway has it, and E2B's SDKs start it.
package main

import (
	"wrenn.dev/internal/mcpgateway"
	"wrenn.dev/internal/run"
)

func main() { run.Main(mcpgateway.DefaultPlaces.Main) }
