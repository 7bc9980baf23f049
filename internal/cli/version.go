package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/alecthomas/kong"

	"wrenn.dev/client"
	"wrenn.dev/internal/buildinfo"
	"wrenn.dev/internal/plain"
)

// serverVersion bounds the wait for the server's version, without which the rest is shown.
const serverVersion = 3 * time.Second

// versionFlag prints the version of this program and ends it.
type versionFlag bool

// BeforeReset runs before anything else of the command line is checked.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	fmt.Fprintln(app.Stdout, "wrenn", versionLine(ownVersion()))
	app.Exit(0)
	return nil
}

type versionCommand struct{}

// versions are those of this program and of the server.
type versions struct {
	Client client.Version  `json:"client"`
	URL    string          `json:"server_url"`
	Server *client.Version `json:"server,omitempty"`
	Error  string          `json:"server_error,omitempty"` // why Server is nil
}

func (s *session) versions(ctx context.Context) (versions, error) {
	url, _, err := s.server()
	if err != nil {
		return versions{}, err
	}
	result := versions{Client: ownVersion(), URL: url}
	server, err := askVersion(ctx, url)
	if err != nil {
		result.Error = err.Error()
		return result, nil //nolint:nilerr // that the server does not answer is a result
	}
	result.Server = &server
	return result, nil
}

// Run prints the versions of this program and, if it answers, of the server.
func (*versionCommand) Run(ctx context.Context, s *session) error {
	result, err := s.versions(ctx)
	if err != nil {
		return err
	}
	return s.print(result, func(w io.Writer) {
		fmt.Fprintln(w, "wrenn  ", versionLine(result.Client))
		if result.Server == nil {
			fmt.Fprintf(w, "server  %s: %s\n", plain.Line(result.URL), plain.Line(result.Error))
			return
		}
		fmt.Fprintf(w, "server  %s at %s\n", versionLine(*result.Server), plain.Line(result.URL))
	})
}

func askVersion(ctx context.Context, url string) (client.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, serverVersion)
	defer cancel()
	api, err := client.New(client.Config{URL: url, UserAgent: "wrenn-cli/" + version()})
	if err != nil {
		return client.Version{}, err
	}
	v, err := api.Version(ctx)
	if client.CodeOf(err) == client.NotFound {
		return v, fmt.Errorf("it is too old to say")
	}
	return v, err
}

func ownVersion() client.Version { return client.Version(buildinfo.Read()) }

// versionLine formats a version for people.
func versionLine(v client.Version) string {
	line := plain.Line(v.Version)
	if v.Commit != "" {
		line += fmt.Sprintf(", commit %s of %s", plain.Line(v.Commit), plain.Line(cmp.Or(v.Date, "an unknown date")))
	}
	return line
}

// version names this program's build to servers.
func version() string { return buildinfo.Read().Short() }
