package account

import (
	"bufio"
	"cmp"
	"os"
	"strconv"
	"strings"
)

// maxNames bounds how many entries of a user file are kept.
const maxNames = 1 << 16

// Names turns user and group numbers into names, as they were when it was made.
type Names struct {
	users, groups map[uint32]string
}

// Names reads the user files. One that cannot be read has no names.
func (db DB) Names() *Names {
	return &Names{
		users:  readNames(cmp.Or(db.Passwd, "/etc/passwd")),
		groups: readNames(cmp.Or(db.Group, "/etc/group")),
	}
}

// User is the name of a user, or the number where there is none.
func (n *Names) User(id uint32) string { return nameOf(n.users, id) }

// Group is the name of a group, or the number where there is none.
func (n *Names) Group(id uint32) string { return nameOf(n.groups, id) }

func nameOf(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// readNames reads name:password:id:… lines, which passwd(5) and group(5) both
// are. The first name of a number counts, as in getpwuid(3).
func readNames(path string) map[uint32]string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	names := map[uint32]string{}
	for lines := bufio.NewScanner(f); lines.Scan() && len(names) < maxNames; {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) < 4 {
			continue
		}
		id, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			continue
		}
		if _, ok := names[uint32(id)]; !ok {
			names[uint32(id)] = strings.ToValidUTF8(fields[0], "\uFFFD")
		}
	}
	return names
}
