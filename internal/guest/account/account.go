// Package account looks up the guest's users and resolves the paths that
// requests name for them.
package account

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrUnknown is the error for a user name that /etc/passwd does not have.
var ErrUnknown = errors.New("unknown user")

// maxLine bounds a line of the user files; a group of thousands has a long one.
const maxLine = 1 << 20

// User is an entry of /etc/passwd with its groups.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary, from /etc/group; without GID
	Home   string
	Shell  string
}

// DB reads the user files at each look-up, because guests change them.
type DB struct {
	Passwd string // default /etc/passwd
	Group  string // default /etc/group
}

// Lookup finds a user by name, never by number. The error wraps ErrUnknown when
// no user has the name.
func (db DB) Lookup(name string) (*User, error) {
	f, err := os.Open(cmp.Or(db.Passwd, "/etc/passwd"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	user, err := findUser(f, name)
	if err != nil {
		return nil, err
	}
	user.Groups, err = db.groupsOf(user)
	return user, err
}

// Resolve makes path absolute: ~ and ~/x are in the user's home; a relative
// path is in dir, itself resolved in the home, or in the home when dir is
// empty. It does not look at the file system.
func (u *User) Resolve(path, dir string) string {
	switch {
	case path == "~" || strings.HasPrefix(path, "~/"):
		return filepath.Join(u.Home, path[1:])
	case filepath.IsAbs(path):
		return filepath.Clean(path)
	case dir == "":
		return filepath.Join(u.Home, path)
	default:
		return filepath.Join(u.Resolve(dir, ""), path)
	}
}

func findUser(r io.Reader, name string) (*User, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		// name:password:uid:gid:comment:home:shell, see passwd(5)
		f := strings.Split(lines.Text(), ":")
		if len(f) != 7 || f[0] != name || name == "" {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: uid: %w", name, err)
		}
		gid, err := strconv.ParseUint(f[3], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: gid: %w", name, err)
		}
		return &User{Name: name, UID: uint32(uid), GID: uint32(gid), Home: cmp.Or(f[5], "/"), Shell: cmp.Or(f[6], "/bin/sh")}, nil
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: %.64q", ErrUnknown, name)
}

func (db DB) groupsOf(u *User) ([]uint32, error) {
	f, err := os.Open(cmp.Or(db.Group, "/etc/group"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var groups []uint32
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		// name:password:gid:member,member, see group(5)
		f := strings.Split(lines.Text(), ":")
		if len(f) != 4 || !slices.Contains(strings.Split(f[3], ","), u.Name) {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && uint32(gid) != u.GID {
			groups = append(groups, uint32(gid))
		}
	}
	return groups, lines.Err()
}
