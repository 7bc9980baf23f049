package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killSession sends SIGKILL to the processes of a session, for guests without
// cgroup2. Programs that made a new session are missed. The caller must make sure
// that the session's leader was not reaped yet.
func killSession(leader int) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return // the pattern is a good one
	}
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && sessionOfProcess(path) == leader {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
}

// sessionOfProcess reads the session of a process, 0 if it is gone: proc_pid_stat(5).
// The name in parentheses may hold anything.
func sessionOfProcess(path string) int {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	// pid (name) state ppid pgrp session …
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 4 {
		return 0
	}
	id, err := strconv.Atoi(fields[3])
	if err != nil {
		return 0
	}
	return id
}
