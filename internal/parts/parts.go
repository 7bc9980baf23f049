// Package parts finds the other programs of Wrenn: in the tree they are all in bin/,
// a package has the commands in /usr/bin and the guest's programs in /usr/lib/wrenn.
package parts

import (
	"os"
	"path/filepath"
	"strings"

	"wrenn.dev"
)

// prefix is what the names of commands have in a directory that other programs share.
const prefix = "wrenn-"

// Find returns the path of the program, such as "host-agent" or "envd", that belongs
// to the running one. It is beside it, with that name or with wrenn- before it, or in
// ../lib/wrenn. The error is a NotFound that names these places.
func Find(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return find(filepath.Dir(self), name)
}

func find(dir, name string) (string, error) {
	places := []string{
		filepath.Join(dir, name), filepath.Join(dir, prefix+name), filepath.Join(filepath.Dir(dir), "lib", "wrenn", name),
	}
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", wrenn.Errorf(wrenn.NotFound, "the program %s is missing, it is none of %s: run make build, or install the package again", name, strings.Join(places, ", "))
}
