module wrenn.dev/client

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/pelletier/go-toml/v2 v2.4.3
)
