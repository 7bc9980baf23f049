package main

import (
	"os"
	"slices"
	"strings"
)

const (
	// guestInit is on the kernel command line of every guest: image.GuestArgs.
	guestInit = "init=/usr/local/bin/wrenn-init"
	// initialPIDs is what /proc/self/ns/pid of the initial PID namespace leads to
	// (PROC_PID_INIT_INO in include/linux/proc_ns.h). Containers have others.
	initialPIDs = "pid:[4026531836]"
)

// inGuest reports whether this process is the agent of a guest: the guest's
// init, or tini on its behalf, started it. An agent that a person starts,
// on a host or in a guest, or that is in a container, is not.
func inGuest() bool {
	if os.Getpid() != 1 && os.Getppid() != 1 {
		return false
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil || namespace != initialPIDs {
		return false
	}
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && isGuestLine(string(line))
}

// isGuestLine reports whether a kernel command line is a guest's.
func isGuestLine(line string) bool { return slices.Contains(strings.Fields(line), guestInit) }
