package cgroup

import "testing"

// Whatever the machine's size, something is left for the agent and the kernel,
// and of what the commands have together something for the next command.
func TestDivide(t *testing.T) {
	for _, memory := range []uint64{96 * mib, 128 * mib, 480 * mib, 1 << 30, 64 << 30} {
		for _, threads := range []uint64{500, 3900, 4 << 20} {
			b := divide(memory, threads)
			if left := memory - b.users.memory; left < 24*mib || left > 257*mib || b.agent == 0 || b.agent > left {
				t.Errorf("of %d MiB %d are left, of which the agent has %d", memory/mib, left/mib, b.agent/mib)
			}
			if b.command.memory >= b.users.memory || b.command.memory < memory/2 {
				t.Errorf("of %d MiB a command has %d, all together %d", memory/mib, b.command.memory/mib, b.users.memory/mib)
			}
			if threads-b.users.pids < 50 || b.users.pids-b.command.pids < 50 {
				t.Errorf("of %d threads a command has %d, all together %d", threads, b.command.pids, b.users.pids)
			}
		}
	}
}
