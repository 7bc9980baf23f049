package cgroup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// delegated are the files of a group whose owner may make groups below it and
// move its processes among them: "Delegation" in the kernel's
// Documentation/admin-guide/cgroup-v2.rst. The group's limits are in others.
var delegated = []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}

// owner is a user and a group of users; zero is root.
type owner struct{ uid, gid uint32 }

// Delegate lets a user divide the group, as container engines do. A group that
// an earlier command had is taken from its user. Call it before the command runs.
func (g *Group) Delegate(uid, gid uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dir == nil {
		return nil
	}
	return g.dir.chown(owner{uid, gid})
}

func (d *dir) chown(to owner) error {
	if d.owner == to {
		return nil
	}
	err := d.file.Chown(int(to.uid), int(to.gid))
	for _, name := range delegated {
		fileErr := unix.Fchownat(d.fd(), name, int(to.uid), int(to.gid), unix.AT_SYMLINK_NOFOLLOW)
		if !errors.Is(fileErr, unix.ENOENT) { // cgroup.threads is newer than the others
			err = errors.Join(err, fileErr)
		}
	}
	if err != nil {
		return fmt.Errorf("delegate cgroup %s: %w", d.path, err)
	}
	d.owner = to
	return nil
}
