package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// The account that sandboxes work as.
const (
	userName = "user"
	userID   = 1000 // or the next that is free
	userHome = "/home/user"
)

// AddUser makes the account user with its group, home and, where sudo is
// there, leave to become root without a password. An account of that name stays
// as it is. Needs root, because the home is the user's.
func (t *Tree) AddUser() error {
	passwd, err := t.database("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	if err != nil {
		return err
	}
	if passwd.has(userName) {
		return errors.Join(t.addSubIDs(), t.allowSudo())
	}
	group, err := t.database("/etc/group", "root:x:0:\n")
	if err != nil {
		return err
	}
	shell := "/bin/sh"
	if t.Executable("/bin/bash") {
		shell = "/bin/bash"
	}
	id := userID
	for passwd.taken(id) || group.taken(id) {
		id++
	}
	passwd.add(fmt.Sprintf("%s:x:%d:%d::%s:%s", userName, id, id, userHome, shell))
	if !group.has(userName) {
		group.add(fmt.Sprintf("%s:x:%d:", userName, id))
	}
	if err := errors.Join(t.save(passwd), t.save(group), t.addShadow()); err != nil {
		return err
	}
	if err := t.makeHome(id); err != nil {
		return err
	}
	return errors.Join(t.addSubIDs(), t.allowSudo())
}

// addShadow gives the account no password, where passwords are kept apart.
func (t *Tree) addShadow() error {
	shadow, err := t.database("/etc/shadow", "")
	if err != nil || len(shadow.lines) == 0 || shadow.has(userName) {
		return err
	}
	shadow.mode = 0o640
	shadow.add(userName + ":!:0::::::")
	return t.save(shadow)
}

func (t *Tree) makeHome(id int) error {
	at, err := t.parent(userHome)
	if err != nil {
		return err
	}
	if err := t.root.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return t.root.Lchown(at, id, id)
}

func (t *Tree) allowSudo() error {
	if t.Find("sudo") == "" {
		return nil
	}
	return t.WriteFile("/etc/sudoers.d/"+userName, []byte(userName+" ALL=(ALL:ALL) NOPASSWD: ALL\n"), 0o440)
}

// database is a file of lines with fields between colons, the name first, the
// number third: passwd(5), group(5), shadow(5).
type database struct {
	path  string
	lines []string
	mode  fs.FileMode
}

func (t *Tree) database(path, fallback string) (*database, error) {
	data, err := t.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = []byte(fallback), nil
	}
	if err != nil {
		return nil, err
	}
	d := &database{path: path, mode: 0o644}
	for line := range strings.Lines(string(data)) {
		d.lines = append(d.lines, strings.TrimSuffix(line, "\n"))
	}
	return d, nil
}

func (d *database) has(name string) bool {
	for _, line := range d.lines {
		if strings.HasPrefix(line, name+":") {
			return true
		}
	}
	return false
}

func (d *database) taken(id int) bool {
	for _, line := range d.lines {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == strconv.Itoa(id) {
			return true
		}
	}
	return false
}

func (d *database) add(line string) { d.lines = append(d.lines, line) }

func (t *Tree) save(d *database) error {
	return t.WriteFile(d.path, []byte(strings.Join(d.lines, "\n")+"\n"), d.mode)
}
