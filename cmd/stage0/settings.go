package main

import (
	"errors"
	"path"
	"slices"
	"strings"
	"syscall"
)

// settings are values below /proc/sys.
var settings = [][2]string{
	// What the kernel does every second or more often, for its statistics and to have
	// large pieces of memory at hand, is most of what an idle guest costs its host.
	{"vm/compaction_proactiveness", "0"},
	{"vm/stat_interval", "60"},
	// What systemd and Debian's procps set, and what programs want that watch many
	// files or map many pieces of memory.
	{"fs/file-max", "9223372036854775807"},
	{"fs/inotify/max_user_instances", "1024"},
	{"fs/inotify/max_user_watches", "524288"},
	{"fs/protected_fifos", "1"},
	{"fs/protected_hardlinks", "1"},
	{"fs/protected_regular", "2"},
	{"fs/protected_symlinks", "1"},
	{"kernel/pid_max", "4194304"},
	{"net/ipv4/ping_group_range", "0 2147483647"},
	{"vm/max_map_count", "1048576"},
}

// applySettings sets the kernel's values, and then the image's own of sysctl.conf(5).
func applySettings() {
	for _, s := range settings {
		set("/proc/sys/", s[0], s[1])
	}
	for _, file := range append(glob("/etc/sysctl.d/*.conf"), "/etc/sysctl.conf") {
		text, err := readFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if name, value, ok := parseSetting(line); ok {
				set("/proc/sys/", name, value)
			}
		}
	}
}

// set writes a value to the files below dir that match a pattern. What the kernel does
// not have is left out.
func set(dir, pattern, value string) {
	for _, file := range glob(dir + pattern) {
		if err := writeFile(file, value+"\n"); !errors.Is(err, syscall.ENOENT) {
			complain(wrap("set "+file+" to "+value, err))
		}
	}
}

// parseSetting reads a line of sysctl.conf(5): the path of the value below /proc/sys,
// which may be a pattern.
func parseSetting(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' || line[0] == ';' {
		return "", "", false
	}
	name, value, ok = strings.Cut(line, "=")
	name = strings.TrimPrefix(strings.TrimSpace(name), "-") // errors are no reason to stop for any of them
	if !ok || name == "" {
		return "", "", false
	}
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return name, strings.TrimSpace(value), true
}

// glob returns the paths that match a pattern of absolute paths, sorted. A path without *, ?
// and [ is returned as it is.
func glob(pattern string) []string {
	found := []string{""}
	for part := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(part, "*?[") {
				next = append(next, dir+"/"+part)
				continue
			}
			for _, name := range list(dir + "/") {
				if ok, _ := path.Match(part, name); ok {
					next = append(next, dir+"/"+name)
				}
			}
		}
		found = next
	}
	return found
}

// list returns the names in a directory, sorted; of one that cannot be read, none.
func list(dir string) (names []string) {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer release(fd)
	buf := make([]byte, 4096)
	for {
		n, err := syscall.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		_, _, names = syscall.ParseDirent(buf[:n], -1, names)
	}
	slices.Sort(names)
	return names
}
