package account

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// RuntimeRoot is where each user has a directory for sockets and other files
// that last as long as the machine runs: XDG_RUNTIME_DIR of the XDG Base
// Directory Specification.
const RuntimeRoot = "/run/user"

// The uids of people, as in Debian's adduser.conf(5).
const (
	firstPerson = 1000
	lastPerson  = 59999
)

// MakeRuntimeDirs makes the runtime directories of root and of people, which
// elsewhere a login makes. root exists. Twice is allowed. It needs root; one
// user's failure keeps no other from having theirs.
func (db DB) MakeRuntimeDirs(root string) error {
	f, err := os.Open(cmp.Or(db.Passwd, "/etc/passwd"))
	if err != nil {
		return err
	}
	defer f.Close()
	var failed error
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLine)
	for made := 0; lines.Scan() && made < maxNames; made++ {
		uid, gid, ok := ids(lines.Text())
		if !ok || uid != 0 && (uid < firstPerson || uid > lastPerson) {
			continue
		}
		if err := makeRuntimeDir(filepath.Join(root, strconv.Itoa(uid)), uid, gid); err != nil {
			failed = err
		}
	}
	return errors.Join(failed, lines.Err())
}

// ids are the numbers of a line of passwd(5).
func ids(line string) (uid, gid int, ok bool) {
	f := strings.Split(line, ":")
	if len(f) != 7 {
		return 0, 0, false
	}
	uid, err := strconv.Atoi(f[2])
	if err != nil {
		return 0, 0, false
	}
	gid, err = strconv.Atoi(f[3])
	return uid, gid, err == nil
}

func makeRuntimeDir(dir string, uid, gid int) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil // of an agent before this one, or of another user with this uid
	}
	if err != nil {
		return err
	}
	return os.Chown(dir, uid, gid)
}

// RuntimeDir returns the user's directory in root, and "" unless it exists and
// belongs to the user alone.
func (u *User) RuntimeDir(root string) string {
	dir := fmt.Sprintf("%s/%d", root, u.UID)
	var st syscall.Stat_t
	if err := syscall.Lstat(dir, &st); err != nil || st.Mode != syscall.S_IFDIR|0o700 || st.Uid != u.UID {
		return ""
	}
	return dir
}
