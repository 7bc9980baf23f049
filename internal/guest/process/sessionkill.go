package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killRounds bounds how often killSession looks for processes that were forked
// while it killed others.
const killRounds = 100

// killSession sends SIGKILL to the processes of a session, for guests without
// cgroup2. Programs that made a new session are missed. The caller must make sure
// that the session's leader was not reaped yet.
func killSession(leader int) {
	for range killRounds {
		if !killMembers(leader) {
			return
		}
	}
}

// killMembers kills the processes that a session has now, and reports whether it
// found one.
func killMembers(leader int) (found bool) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return false // never happens: the pattern is valid
	}
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && sessionOfProcess(path) == leader {
			found = unix.Kill(pid, unix.SIGKILL) == nil || found // it may have ended
		}
	}
	return found
}

// sessionOfProcess reads the session of a process, 0 if the process is gone or a
// zombie: proc_pid_stat(5). The name in parentheses may hold any bytes.
func sessionOfProcess(path string) int {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	// pid (name) state ppid pgrp session …
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 4 || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	id, err := strconv.Atoi(fields[3])
	if err != nil {
		return 0
	}
	return id
}
