package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/pelletier/go-toml/v2"
)

// maxSettings bounds a file of flags.
const maxSettings = 1 << 20

// flagFile has flags of "wrenn up" by their names, from the file of --settings. A flag
// on the command line wins.
type flagFile map[string]any

// loadFlags is the kong.ConfigurationLoader of --settings.
func loadFlags(r io.Reader) (kong.Resolver, error) {
	file := flagFile{}
	text, err := io.ReadAll(io.LimitReader(r, maxSettings))
	if err == nil {
		err = toml.Unmarshal(text, &file)
	}
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	return file, nil
}

// notInFile are flags that say what to do now, not how the service is.
var notInFile = []string{"help", "settings", "install", "uninstall"}

// Validate implements kong.Resolver: every name must be a flag of the command.
func (f flagFile) Validate(app *kong.Application) error {
	var known []string
	for _, node := range app.Children {
		if node.Name != "up" {
			continue
		}
		for _, flag := range node.Flags {
			if !slices.Contains(notInFile, flag.Name) {
				known = append(known, flag.Name)
			}
		}
	}
	for name := range f {
		if !slices.Contains(known, name) {
			return fmt.Errorf("settings: there is no %q, use the flags of wrenn up: %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

// Resolve implements kong.Resolver.
func (f flagFile) Resolve(_ *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if parent.Command == nil || parent.Command.Name != "up" {
		return nil, nil //nolint:nilnil // kong's way to say that there is no value
	}
	return f[flag.Name], nil
}
