package rootfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The ranges of subordinate ids, as useradd assigns them.
const (
	firstSubID = 100000
	subIDs     = 65536
	maxSubID   = 1<<32 - 2 // 1<<32 - 1 is not a valid id
)

// addSubIDs assigns ids to the account for containers that it runs without root:
// subuid(5), subgid(5).
func (t *Tree) addSubIDs() error {
	return errors.Join(t.addSubIDRange("/etc/subuid"), t.addSubIDRange("/etc/subgid"))
}

func (t *Tree) addSubIDRange(path string) error {
	ranges, err := t.database(path)
	if err != nil || ranges.line(userName) != "" {
		return err
	}
	start := firstSubID
	for _, line := range ranges.lines {
		if end := endOfRange(line); end <= maxSubID-subIDs {
			start = max(start, end)
		}
	}
	ranges.set(fmt.Sprintf("%s:%d:%d", userName, start, subIDs))
	return t.save(ranges)
}

// endOfRange returns the id after the range of a line, 0 for a line without one.
func endOfRange(line string) int {
	f := strings.Split(line, ":")
	if len(f) != 3 {
		return 0
	}
	first, err1 := strconv.ParseUint(f[1], 10, 32)
	count, err2 := strconv.ParseUint(f[2], 10, 32)
	if errors.Join(err1, err2) != nil {
		return 0
	}
	return int(first + count)
}
