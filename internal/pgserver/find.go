package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"wrenn.dev"
)

// places are the directories in which distributions install PostgreSQL's
// programs; most are not in PATH.
var places = []string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/pgsql-*/bin",          // PostgreSQL's own packages for RHEL
	"/usr/libexec/postgresql*",  // Alpine
	"/usr/local/pgsql/bin",      // built from source
}

// Programs is an installation of PostgreSQL.
type Programs struct {
	Bin   string // the directory
	Major int
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// Find returns the installations of PostgreSQL's server, the newest first. If
// there is none, the error is a NotFound that says what to install.
func Find(ctx context.Context) ([]Programs, error) {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // the other programs are beside the real one
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	for _, place := range places {
		found, err := filepath.Glob(place)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, found...)
	}
	var all []Programs
	for _, dir := range dirs {
		if p, err := inspect(ctx, dir); err == nil {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil, wrenn.Errorf(wrenn.NotFound, "PostgreSQL's server is not installed: apt-get install postgresql (or dnf install postgresql-server)")
	}
	slices.SortStableFunc(all, func(a, b Programs) int { return b.Major - a.Major })
	return all, nil
}

func inspect(ctx context.Context, dir string) (Programs, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return Programs{}, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Programs{}, err
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return Programs{}, fmt.Errorf("%s: unknown version %q", dir, out)
	}
	major, err := strconv.Atoi(string(m[1]))
	return Programs{Bin: dir, Major: major}, err
}

// programs picks the installation: that of the version that made the data, because
// no other major version can read it, else the newest.
func programs(ctx context.Context, cfg Config) (string, error) {
	if cfg.Bin != "" {
		return cfg.Bin, nil
	}
	all, err := Find(ctx)
	if err != nil {
		return "", err
	}
	content, err := os.ReadFile(filepath.Join(cfg.data(), "PG_VERSION"))
	if err != nil {
		return all[0].Bin, nil //nolint:nilerr // no data yet
	}
	made := strings.TrimSpace(string(content))
	for _, p := range all {
		if strconv.Itoa(p.Major) == made {
			return p.Bin, nil
		}
	}
	return "", wrenn.Errorf(wrenn.FailedPrecondition, "the database in %s is of PostgreSQL %s, but only %d is installed: install %s, or move the data with pg_upgrade", cfg.Dir, made, all[0].Major, made)
}
