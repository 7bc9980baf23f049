package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"wrenn.dev/client"
)

// destination returns the destination of several sources, with a slash at its end.
func destination(to string) (string, error) {
	if to == standard {
		return "", errors.New("several sources cannot be copied to standard output")
	}
	if _, remote := parseRemote(to); !remote {
		info, err := os.Stat(to)
		if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "", fmt.Errorf("%s is not a directory: several sources need one", to)
		}
	}
	return strings.TrimRight(to, "/") + "/", nil
}

// baseOf returns the name that a source has in the directory that it is copied to.
func baseOf(from string) string {
	if r, remote := parseRemote(from); remote {
		from = r.path
	}
	return path.Base(from)
}

// maxExpanded bounds the files that a wildcard may match.
const maxExpanded = 10_000

// expandScript prints the files that match $1, each with a NUL behind it. A file that
// has the name itself is the only one. Without IFS nothing is split at spaces.
const expandScript = `if [ -e "$1" ]; then printf '%s\0' "$1"; exit; fi; IFS=; for f in $1; do if [ -e "$f" ] || [ -L "$f" ]; then printf '%s\0' "$f"; fi; done`

// expand replaces wildcards in paths of sandboxes. The shell has replaced those of
// this machine.
func expand(ctx context.Context, api *client.Client, user string, sources []string) (out []string, err error) {
	for _, source := range sources {
		from, remote := parseRemote(source)
		if !remote || !strings.ContainsAny(from.path, "*?[") {
			out = append(out, source)
			continue
		}
		found, err := api.Exec(ctx, from.id, client.Command{Cmd: "/bin/sh", Args: []string{"-c", expandScript, "sh", from.path}, User: user})
		if err != nil {
			return nil, err
		}
		names := strings.Split(strings.TrimSuffix(string(found.Stdout), "\x00"), "\x00")
		if len(found.Stdout) == 0 {
			return nil, fmt.Errorf("no file in the sandbox matches %s", from.path)
		}
		if found.Truncated || len(names) > maxExpanded {
			return nil, fmt.Errorf("%s matches more than %d files: copy their directory with -r", from.path, maxExpanded)
		}
		for _, name := range names {
			out = append(out, from.id+":"+name)
		}
	}
	return out, nil
}
