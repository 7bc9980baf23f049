package wrenn

import (
	"path"
	"strings"
	"time"
)

// Volume is a persistent directory of a team that sandboxes mount, and that outlives them.
type Volume struct {
	ID        VolumeID
	Team      TeamID
	Name      string // 1 to 63 of [a-zA-Z0-9_-]; a team has one of each name
	Host      HostID // that stores it; sandboxes that mount it run there
	SizeMiB   int    // the most that its files may take
	CreatedAt time.Time
}

// VolumeMount is a volume in a sandbox. Its JSON form is that of host journals.
type VolumeMount struct {
	Volume VolumeID `json:"volume"`
	Name   string   `json:"name,omitempty"` // the volume's, for people
	Path   string   `json:"path"`           // absolute and clean; made in the guest if it does not exist
}

// CheckVolumeName returns an Invalid error for a name that no volume may have.
func CheckVolumeName(name string) error {
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
		return Errorf(Invalid, "%.64q is not the name of a volume: that is 1 to 63 of a-z, A-Z, 0-9, _ and -", name)
	}
	return nil
}

// CheckVolumes returns an Invalid error for mounts that a sandbox cannot have.
func CheckVolumes(mounts []VolumeMount) error {
	if len(mounts) > MaxVolumes {
		return Errorf(Invalid, "a sandbox mounts at most %d volumes", MaxVolumes)
	}
	for i, m := range mounts {
		if len(m.Path) > maxMountPathBytes || !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || strings.ContainsRune(m.Path, 0) {
			return Errorf(Invalid, "a volume cannot be mounted at %.64q: write an absolute path without . and ..", m.Path)
		}
		for _, system := range []string{"/proc", "/sys", "/dev", "/etc", "/boot"} {
			if m.Path == "/" || isIn(m.Path, system) {
				return Errorf(Invalid, "a volume cannot be mounted at %s, which the sandbox's system needs", m.Path)
			}
		}
		for _, other := range mounts[:i] {
			if other.Volume == m.Volume || isIn(m.Path, other.Path) || isIn(other.Path, m.Path) {
				return Errorf(Invalid, "a volume is mounted once, and not in another one: %s and %s", other.Path, m.Path)
			}
		}
	}
	return nil
}

// isIn reports whether path is dir or in it.
func isIn(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
