package client

import (
	"fmt"
	"os"

	"wrenn.dev/client/settings"
)

// FromEnvironment returns a client of the server that the command wrenn uses without
// flags: that of WRENN_API_URL and WRENN_API_KEY, or of the configuration file, which
// "wrenn up" and "wrenn login" write. A key of the file is sent only to the server that
// it was given for. FromEnvironment does not connect to the server yet.
func FromEnvironment() (*Client, error) {
	server, err := settings.FromEnvironment(os.Getenv)
	if err != nil {
		return nil, &Error{Code: InvalidRequest, Message: "the server to use is not known", Err: err}
	}
	if server.Key == "" {
		return nil, &Error{Code: InvalidRequest, Message: fmt.Sprintf("no API key for %s: set WRENN_API_KEY, or use wrenn login", server.URL)}
	}
	return New(Config{URL: server.URL, Key: server.Key})
}
