package firecracker

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"wrenn.dev"
)

// Version is a version of Firecracker, like 1.16.1 or 1.17.0-dev.
type Version struct {
	Major, Minor, Patch int
	Pre                 string // what follows a dash; empty for a release
}

// minVersion is the oldest version that the driver runs: 1.12 brought
// network_overrides and boots by PVH.
var minVersion = Version{Major: 1, Minor: 12}

// capabilities are the differences between the versions that the driver runs. The
// API refuses fields that it does not know.
type capabilities struct {
	// clockRealtime: snapshot/load accepts clock_realtime. In older versions the
	// clock of a restored guest follows the host's without it.
	clockRealtime bool
	// diffs: a restored machine can track the pages that it changes
	// (track_dirty_pages of snapshot/load), and writes only those into an existing
	// memory file.
	diffs bool
}

// since is the table of capabilities, from Firecracker's CHANGELOG and from tests.
var since = []struct {
	version Version
	gain    func(*capabilities)
}{
	{Version{Major: 1, Minor: 16}, func(c *capabilities) { c.clockRealtime = true }},
	// Diffs are older, but lose pages of guests above 3 GiB before 1.15, and
	// 1.15 was not tried.
	{Version{Major: 1, Minor: 16}, func(c *capabilities) { c.diffs = true }},
}

// capabilities returns those of the version; a pre-release has those of its release.
func (v Version) capabilities() capabilities {
	var c capabilities
	for _, row := range since {
		if v.Compare(row.version) >= 0 {
			row.gain(&c)
		}
	}
	return c
}

// Compare orders versions; it ignores Pre.
func (v Version) Compare(o Version) int {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor), cmp.Compare(v.Patch, o.Patch))
}

// loads reports whether this version can load a snapshot of the version made. Patches
// of one minor version keep the format, and Firecracker promises no more.
func (v Version) loads(made Version) bool {
	return v.Major == made.Major && v.Minor == made.Minor && v.Pre == made.Pre
}

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// MarshalText and UnmarshalText make it a string in JSON.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (v *Version) UnmarshalText(text []byte) error {
	parsed, err := ParseVersion(string(text))
	*v = parsed
	return err
}

var versionForm = regexp.MustCompile(`^v?([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(?:-([0-9A-Za-z.-]{1,40}))?$`)

// ParseVersion reads "v1.16.1", "1.17.0-dev" and the like.
func ParseVersion(s string) (Version, error) {
	m := versionForm.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("not a version: %.60q", s)
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // one to four digits
	}
	return Version{Major: n[0], Minor: n[1], Patch: n[2], Pre: m[4]}, nil
}

// versionLimit bounds `firecracker --version`: 0.1 s under emulation.
const versionLimit = 10 * time.Second

// ProgramVersion returns the version of the firecracker at path.
func ProgramVersion(ctx context.Context, path string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Version{}, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the configured firecracker does not run", Err: err}
	}
	v, err := versionOf(out)
	if err != nil {
		return Version{}, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the configured firecracker does not say its version", Err: err}
	}
	return v, nil
}

// versionOf returns the version in what `firecracker --version` prints: its first
// line is "Firecracker v1.16.1"; snapshot versions and log lines may follow.
func versionOf(output []byte) (Version, error) {
	line, _, _ := bytes.Cut(output, []byte("\n"))
	version, found := bytes.CutPrefix(bytes.TrimSpace(line), []byte("Firecracker "))
	if !found {
		return Version{}, fmt.Errorf("not Firecracker's version: %.60q", line)
	}
	return ParseVersion(string(version))
}
