package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20

	// agentWeight is the agent's share of the CPU where all commands together
	// have 100: a command that uses all of it must not make the agent slow.
	agentWeight = "1000"
)

// limits are those of a command. They are lower than the limits of all commands
// together, so that there is room for another command, which may end the first.
type limits struct {
	memory uint64 // bytes
	pids   uint64
}

// files is what the files of a command's directory say.
func (l limits) files() map[string]string {
	values := map[string]string{"memory.max": "max", "pids.max": "max"}
	if l.memory > 0 {
		values["memory.max"] = strconv.FormatUint(l.memory, 10)
	}
	if l.pids > 0 {
		values["pids.max"] = strconv.FormatUint(l.pids, 10)
	}
	return values
}

// apply limits a new directory. A guest without a controller has no file for its limit.
func (l limits) apply(d *dir, log *slog.Logger) {
	for name, value := range l.files() {
		if value == "max" {
			continue
		}
		if err := set(d.path, name, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("a command runs without a limit", slog.Any("err", err))
		}
	}
}

// budget is how a machine is divided.
type budget struct {
	agent   uint64 // bytes of memory that are the agent's first of all
	users   limits // of all commands together
	command limits
}

// divide gives most of the machine to the commands. In an idle guest of 256 MiB
// 29 MiB of the 218 MiB that the kernel manages were in use. With 40 MiB in reserve
// a command that took all memory made the guest read its own programs from the disk again
// and again, for minutes, before it was killed; with 54 MiB it was killed in seconds.
func divide(memory, threads uint64) budget {
	reserve := min(max(memory/12, 64*mib), 192*mib, memory/4)
	users := limits{memory: pages(memory - reserve), pids: threads - threads/8}
	return budget{
		agent: pages(reserve / 2),
		users: users,
		command: limits{
			memory: pages(users.memory - min(users.memory/16, 64*mib)),
			pids:   users.pids - users.pids/8,
		},
	}
}

// pages rounds down to whole pages, as the kernel does.
func pages(bytes uint64) uint64 { return bytes &^ uint64(os.Getpagesize()-1) }

// protectAgent moves this process to the agent's group, protects that group and
// limits all commands together. It returns the limits of each command.
func protectAgent(root string, log *slog.Logger) limits {
	memory, threads, err := machine()
	if err != nil {
		log.Warn("commands run without limits", slog.Any("err", err))
		return limits{}
	}
	b := divide(memory, threads)
	agent, users := filepath.Join(root, agentName), filepath.Join(root, userName)
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if err := set(root, "cgroup.subtree_control", "+"+controller); err != nil {
			log.Warn("no cgroup controller", slog.String("controller", controller), slog.Any("err", err))
		}
	}
	if err := os.Mkdir(agent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		log.Warn("the agent does not have its own cgroup", slog.Any("err", err))
	}
	if err := lockCode(); err != nil {
		log.Warn("the agent's code may have to be read again when memory is short", slog.Any("err", err))
	}
	for _, file := range []struct{ group, name, value string }{
		{agent, "memory.min", strconv.FormatUint(b.agent, 10)},
		{agent, "cpu.weight", agentWeight},
		{agent, "cgroup.procs", "0"}, // the writer
		{users, "memory.max", strconv.FormatUint(b.users.memory, 10)},
		{users, "pids.max", strconv.FormatUint(b.users.pids, 10)},
		{users, "cgroup.subtree_control", "+cpu"}, // as much for a new command as for one of a thousand processes
		{users, "cgroup.subtree_control", "+memory"},
		{users, "cgroup.subtree_control", "+pids"},
	} {
		if err := set(file.group, file.name, file.value); err != nil {
			log.Warn("the agent is less protected than it should be", slog.Any("err", err))
		}
	}
	return b.command
}

// machine returns how much memory the machine has, in bytes, and how many threads it can have.
func machine() (memory, threads uint64, err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, fmt.Errorf("sysinfo: %w", err)
	}
	for _, name := range []string{"threads-max", "pid_max"} {
		raw, err := os.ReadFile(filepath.Join("/proc/sys/kernel", name))
		if err != nil {
			return 0, 0, err
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		if threads == 0 || n < threads {
			threads = n
		}
	}
	return info.Totalram * uint64(info.Unit), threads, nil
}

// set writes an existing file of a group.
func set(group, name, value string) error {
	file, err := os.OpenFile(filepath.Join(group, name), os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(value)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s of cgroup %s to %s: %w", name, filepath.Base(group), value, err)
	}
	return nil
}
