package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountNFS mounts by NFS 3 over TCP, without locks that are shared with other
// clients. Programs wait while the server does not answer: the host's agent may be
// started again. Attributes are trusted for a second, so that one guest sees soon what
// another writes.
func (Kernel) MountNFS(target, path string) error {
	address, _, ok := strings.Cut(target, ":")
	if !ok || strings.ContainsAny(address, ", \n") {
		return errors.New("the target of a mount is ADDRESS:/EXPORT")
	}
	switch mounted, err := isMounted(target, path); {
	case err != nil:
		return err
	case mounted:
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	options := "vers=3,proto=tcp,mountproto=tcp,port=2049,mountport=2049,nolock,hard,actimeo=1,addr=" + address
	if err := unix.Mount(target, path, "nfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// isMounted reports whether target is mounted at path.
func isMounted(target, path string) (bool, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return false, err
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == target && unescape(fields[1]) == path {
			return true, nil
		}
	}
	return false, lines.Err()
}

// unescape undoes what the kernel does to spaces in a path; see proc(5) and getmntent(3).
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
