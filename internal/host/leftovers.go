package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wrenn.dev/internal/netns"
)

// linksDir lists the network links of the caller's namespace, see sysfs(5).
const linksDir = "/sys/class/net"

// Leftovers returns the names of what machines have left on this host: namespaces
// and links, and directories below runDir. prefix is that of network.Config. Before
// Close that includes the pool's ready slots; after Close there should be none.
func Leftovers(runDir, prefix string) ([]string, error) {
	names, err := netns.List(prefix + "-")
	if err != nil {
		return nil, err
	}
	var left []string
	for _, name := range names {
		left = append(left, "network namespace "+name)
	}
	links, linksErr := entries(linksDir)
	for _, link := range links {
		if strings.HasPrefix(link, prefix+"-") {
			left = append(left, "link "+link)
		}
	}
	machines, machinesErr := entries(filepath.Join(runDir, "vm"))
	for _, machine := range machines {
		left = append(left, "directory "+filepath.Join(runDir, "vm", machine))
	}
	return left, errors.Join(linksErr, machinesErr)
}

// entries returns the names in a directory, none if it does not exist.
func entries(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, err
}
