package main

import (
	"runtime"
	"strings"
	"syscall"
)

const (
	// ownPath is this program in the root file system, and the kernel's init= parameter.
	ownPath   = "/usr/local/bin/wrenn-init"
	tiniPath  = "/sbin/tini"
	agentPath = "/usr/local/bin/envd"
)

// Limits of open files, those of systemd: programs that select(2) break above 1024.
const (
	softFiles = 1024
	hardFiles = 524288
)

// runAgent sets up the rest of the running system, whose file systems are mounted,
// and becomes tini, which runs the agent. It returns only when it fails: what the
// image or the kernel lacks is reported on the console, and left out.
func runAgent() error {
	for _, controller := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		complain(wrap("enable the cgroup controller "+controller, writeFile("/sys/fs/cgroup/cgroup.subtree_control", "+"+controller)))
	}
	applySettings()
	complain(wrap("raise the limit of open files",
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: softFiles, Max: hardFiles})))
	complain(wrap("set the host name", syscall.Sethostname([]byte("sandbox"))))
	complain(wrap("set a name server", setNameServer("/etc/resolv.conf")))
	env := environment
	if lang := locale("/"); lang != "" {
		env = append(env, "LANG="+lang)
	}
	removeOldTmp()
	const executable = 1
	err := syscall.Access(tiniPath, executable)
	if err == nil {
		err = syscall.Exec(tiniPath, []string{tiniPath, "--", agentPath}, env)
	}
	complain(wrap("run "+tiniPath+": envd runs as PID 1, orphaned processes are not reaped", err))
	return wrap("run "+agentPath, syscall.Exec(agentPath, []string{agentPath}, env))
}

// setNameServer writes the file unless it has something. A link to nowhere counts as
// missing, and an empty file is what container runtimes leave.
func setNameServer(path string) error {
	var info syscall.Stat_t
	if syscall.Stat(path, &info) == nil && info.Size > 0 {
		return nil
	}
	_ = syscall.Unlink(path) // it may not exist
	return makeFile(path, "nameserver 1.1.1.1\nnameserver 8.8.8.8\n")
}

// locale returns the LANG of the image, else UTF-8 where its C library has that.
func locale(root string) (lang string) {
	if exists(root+"usr/lib/locale/C.utf8") || exists(root+"lib/ld-musl-"+machine()+".so.1") {
		lang = "C.UTF-8"
	}
	for _, file := range []string{"etc/locale.conf", "etc/default/locale"} {
		text, err := readFile(root + file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "LANG="); ok {
				lang = strings.Trim(value, `"'`)
			}
		}
	}
	return lang
}

// machine is the architecture as uname(1) has it.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// makeFile makes a small file that all may read, or overwrites it.
func makeFile(path, text string) error { return write(path, syscall.O_CREAT|syscall.O_TRUNC, text) }

// writeFile writes to a file that exists.
func writeFile(path, text string) error { return write(path, 0, text) }

func write(path string, flags int, text string) error {
	fd, err := syscall.Open(path, flags|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer release(fd)
	_, err = syscall.Write(fd, []byte(text)) // so little is taken at once
	return err
}
