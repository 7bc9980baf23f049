// Package buildinfo tells from which sources the running program was built.
package buildinfo

import (
	"runtime/debug"
	"sync"
)

// Info is a build.
type Info struct {
	Version string `json:"version"`          // of the release, else of the module, as Go names it; "(devel)" if it has none
	Commit  string `json:"commit,omitempty"` // "" if unknown; ends in -dirty if files had changed
	Date    string `json:"date,omitempty"`   // of the commit, in the form of RFC 3339
}

// Set by the linker in builds that Go does not stamp, see the Makefile.
var version, commit, date string

// Read returns the build of the running program.
var Read = sync.OnceValue(func() Info {
	built, ok := debug.ReadBuildInfo()
	if !ok {
		return Info{Version: "unknown"}
	}
	return of(built)
})

func of(built *debug.BuildInfo) Info {
	info := Info{Version: built.Main.Version}
	if version != "" {
		info.Version = version
	}
	if info.Version == "" {
		info.Version = "(devel)"
	}
	changed := ""
	for _, set := range built.Settings {
		switch {
		case set.Key == "vcs.revision":
			info.Commit = set.Value
		case set.Key == "vcs.time":
			info.Date = set.Value
		case set.Key == "vcs.modified" && set.Value == "true":
			changed = "-dirty"
		}
	}
	if info.Commit == "" {
		info.Commit, info.Date = commit, date
	}
	info.Commit += changed
	return info
}

// short is the length of a shortened commit.
const short = 12

// Short returns what names the build in a few characters: its commit, else its version.
func (i Info) Short() string {
	if i.Commit == "" {
		return i.Version
	}
	return i.Commit[:min(short, len(i.Commit))]
}
