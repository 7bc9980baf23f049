package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The default account of sandboxes.
const (
	userName = "user"
	userID   = 1000 // or the next free id
	userHome = "/home/user"
)

// AddUser adds the account user with its group and home, and lets it use sudo, if
// installed, without a password. An existing account of that name stays as it is.
// It needs root, to change the owner of the home directory.
func (t *Tree) AddUser() error {
	passwd, err := t.database("/etc/passwd")
	if err != nil {
		return err
	}
	if passwd.line(userName) != "" {
		return errors.Join(t.addSubIDs(), t.allowSudo())
	}
	group, err := t.database("/etc/group")
	if err != nil {
		return err
	}
	uid, gid, err := t.addAccount(passwd, group)
	if err != nil {
		return err
	}
	return errors.Join(t.makeHome(uid, gid), t.addSubIDs(), t.allowSudo())
}

// addAccount adds the account to all account files of the image, as useradd(8)
// would, without a usable password.
func (t *Tree) addAccount(passwd, group *database) (uid, gid int, err error) {
	uid = userID
	gid, grouped := group.number(userName)
	users, groups := passwd.numbers(), group.numbers()
	for users[uid] || !grouped && groups[uid] {
		uid++
	}
	if !grouped {
		gid = uid
	}
	shell := "/bin/sh"
	if t.Executable("/bin/bash") {
		shell = "/bin/bash"
	}
	// No field of a shadow line about ages is set: 0 as the day of the last
	// change would make su and sudo demand another password.
	hidden, err := t.addHidden("/etc/shadow", userName+":!:::::::")
	if err != nil {
		return 0, 0, err
	}
	// x means that the password is in /etc/shadow; without that file PAM would not
	// find the account.
	password := "x"
	if !hidden {
		password = "*"
	}
	if passwd.missing {
		passwd.set("root:" + password + ":0:0:root:/root:/bin/sh")
	}
	passwd.set(fmt.Sprintf("%s:%s:%d:%d::%s:%s", userName, password, uid, gid, userHome, shell))
	if err := t.save(passwd); err != nil {
		return 0, 0, err
	}
	return uid, gid, t.addGroup(group, gid, grouped)
}

func (t *Tree) addGroup(group *database, gid int, grouped bool) error {
	if grouped {
		return nil
	}
	if group.missing {
		group.set("root:x:0:")
	}
	group.set(fmt.Sprintf("%s:x:%d:", userName, gid))
	_, err := t.addHidden("/etc/gshadow", userName+":!::")
	return errors.Join(err, t.save(group))
}

// addHidden adds a line to a file that only root can read, if the image has that
// file, and reports whether it has.
func (t *Tree) addHidden(path, line string) (bool, error) {
	d, err := t.database(path)
	if err != nil || d.missing {
		return false, err
	}
	d.set(line)
	return true, t.save(d)
}

func (t *Tree) makeHome(uid, gid int) error {
	at, err := t.parent(userHome)
	if err != nil {
		return err
	}
	if err := t.root.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return t.root.Lchown(at, uid, gid)
}

// allowSudo lets the account become root, if the image has sudo.
func (t *Tree) allowSudo() error {
	if t.Find("sudo") == "" {
		return nil
	}
	const dir = "/etc/sudoers.d"
	if err := t.WriteFile(dir+"/"+userName, []byte(userName+" ALL=(ALL:ALL) NOPASSWD: ALL\n"), 0o440); err != nil {
		return err
	}
	sudoers, err := t.database("/etc/sudoers")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(sudoers.lines, func(line string) bool {
		f := strings.Fields(line)
		return len(f) == 2 && (f[0] == "@includedir" || f[0] == "#includedir") && strings.Trim(f[1], `"`) == dir
	}) {
		return nil
	}
	if sudoers.missing {
		sudoers.mode = 0o440
	}
	sudoers.lines = append(sudoers.lines, "#includedir "+dir) // this is no comment; @includedir needs sudo 1.9.1
	return t.save(sudoers)
}

// database is a file of lines with fields between colons, the name first, the
// number third: passwd(5), group(5), shadow(5).
type database struct {
	path     string
	missing  bool // the image has no such file
	lines    []string
	mode     fs.FileMode
	uid, gid int
}

// database reads a file. A missing one is created later: owned by root, readable by all.
func (t *Tree) database(path string) (*database, error) {
	d := &database{path: path, mode: 0o644}
	info, err := t.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		d.missing = true
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	d.mode = info.Mode().Perm()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		d.uid, d.gid = int(st.Uid), int(st.Gid)
	}
	data, err := t.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		d.lines = append(d.lines, strings.TrimSuffix(line, "\n"))
	}
	return d, nil
}

// line returns the line of a name, "" without one.
func (d *database) line(name string) string {
	for _, line := range d.lines {
		if strings.HasPrefix(line, name+":") {
			return line
		}
	}
	return ""
}

// number returns the third field of a name's line.
func (d *database) number(name string) (int, bool) {
	f := strings.Split(d.line(name), ":")
	if len(f) < 3 {
		return 0, false
	}
	n, err := strconv.Atoi(f[2])
	return n, err == nil
}

// numbers returns the third fields of all lines.
func (d *database) numbers() map[int]bool {
	all := map[int]bool{}
	for _, line := range d.lines {
		f := strings.SplitN(line, ":", 4)
		if len(f) < 3 {
			continue
		}
		if n, err := strconv.Atoi(f[2]); err == nil {
			all[n] = true
		}
	}
	return all
}

// set appends a line, and removes a line of the same name: a leftover, because the
// image has no such account.
func (d *database) set(line string) {
	name, _, _ := strings.Cut(line, ":")
	old := d.line(name)
	d.lines = slices.DeleteFunc(d.lines, func(line string) bool { return old != "" && line == old })
	d.lines = append(d.lines, line)
}

// save writes the file with its earlier owner and mode: Debian's unix_chkpwd reads
// shadow by its group.
func (t *Tree) save(d *database) error {
	err := t.WriteFile(d.path, []byte(strings.Join(d.lines, "\n")+"\n"), d.mode)
	if err != nil || d.missing {
		return err
	}
	at, err := t.resolve(d.path)
	if err != nil {
		return err
	}
	return errors.Join(t.root.Lchown(at, d.uid, d.gid), t.root.Chmod(at, d.mode)) // a change of the owner may change the mode
}
