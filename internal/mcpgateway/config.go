package mcpgateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	maxConfig  = 256 << 10 // of the text, in bytes
	maxServers = 50
)

// entry is one server as the configuration has it: a repository of GitHub, a command,
// or, of a server of the catalog, its settings.
type entry struct {
	RunCmd     string            `json:"runCmd"`
	InstallCmd string            `json:"installCmd"`
	Envs       map[string]string `json:"envs"`

	Command string            `json:"command"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env"`

	Paths []string `json:"paths"` // of the catalog's filesystem
}

// program is how a server is started.
type program struct {
	name    string // unique, and fit for the name of a tool
	argv    []string
	env     map[string]string
	clone   string // the repository that must be in dir; "" without one
	install string // what runs in dir after the clone, by sh
	dir     string // "" is the gateway's own
}

// catalog has the servers that need no command: the reference servers of the protocol.
// E2B's configuration knows more names.
var catalog = map[string]func(entry) ([]string, error){
	"fetch":  fixed("uvx", "mcp-server-fetch"),
	"git":    fixed("uvx", "mcp-server-git"),
	"time":   fixed("uvx", "mcp-server-time"),
	"memory": fixed("npx", "-y", "@modelcontextprotocol/server-memory"),
	"filesystem": func(e entry) ([]string, error) {
		if len(e.Paths) == 0 {
			return nil, errors.New("set paths to the directories that it may use")
		}
		return append([]string{"npx", "-y", "@modelcontextprotocol/server-filesystem"}, e.Paths...), nil
	},
	"sequentialthinking": fixed("npx", "-y", "@modelcontextprotocol/server-sequential-thinking"),
}

func fixed(argv ...string) func(entry) ([]string, error) {
	return func(entry) ([]string, error) { return argv, nil }
}

// parseConfig returns the programs that a configuration names, in the order of their
// names: a JSON object of names of servers and their settings. Repositories are kept
// below dir.
func parseConfig(text []byte, dir string) ([]program, error) {
	if len(text) > maxConfig {
		return nil, fmt.Errorf("the configuration has %d bytes, more than %d", len(text), maxConfig)
	}
	var entries map[string]entry
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("the configuration is no JSON object of servers: %w", err)
	}
	if len(entries) > maxServers {
		return nil, fmt.Errorf("the configuration has %d servers, more than %d", len(entries), maxServers)
	}
	var programs []program
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		p, err := programOf(name, entries[name], dir)
		if err != nil {
			return nil, fmt.Errorf("server %.80q: %w", name, err)
		}
		if slices.ContainsFunc(programs, func(other program) bool { return other.name == p.name }) {
			return nil, fmt.Errorf("server %.80q: another one is called %s, too", name, p.name)
		}
		programs = append(programs, p)
	}
	return programs, nil
}

var (
	repository = regexp.MustCompile(`^github/([A-Za-z0-9][A-Za-z0-9-]*)/([A-Za-z0-9_][A-Za-z0-9._-]*)$`)
	unfit      = regexp.MustCompile(`[^A-Za-z0-9_-]+`)
)

func programOf(name string, e entry, dir string) (program, error) {
	p := program{name: unfit.ReplaceAllString(filepath.Base(name), "_")}
	switch known, isKnown := catalog[name]; {
	case strings.HasPrefix(name, "github/"):
		parts := repository.FindStringSubmatch(name)
		if parts == nil {
			return p, errors.New("a repository is named github/OWNER/NAME")
		}
		if e.RunCmd == "" {
			return p, errors.New("set runCmd to the command that serves MCP on its standard input and output")
		}
		p.argv, p.env, p.install = []string{"/bin/sh", "-c", e.RunCmd}, e.Envs, e.InstallCmd
		p.clone, p.dir = "https://github.com/"+parts[1]+"/"+parts[2]+".git", filepath.Join(dir, parts[1], parts[2])
	case e.Command != "":
		p.argv, p.env = append([]string{e.Command}, e.Args...), e.Env
	case isKnown:
		argv, err := known(e)
		if err != nil {
			return p, err
		}
		p.argv = argv
	default:
		return p, fmt.Errorf("it is not in the catalog (%s): give it a command, with args and env, or name a repository github/OWNER/NAME with a runCmd",
			strings.Join(slices.Sorted(maps.Keys(catalog)), ", "))
	}
	return p, nil
}
