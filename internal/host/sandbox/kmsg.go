package sandbox

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/vm"
)

const (
	kernelRecord  = 8 << 10 // bytes; the kernel's are not longer
	maxRecords    = 100_000
	clockTick     = 10 * time.Millisecond // of vm.Ref.StartTime, see USER_HZ in time(7)
	firstUserPart = 8                     // of syslog(3): what the kernel prints is LOG_KERN, below it
)

// wasKilledForMemory reports whether the host's kernel says that it killed that VMM
// for lack of memory. Where its log cannot be read the answer is no.
func wasKilledForMemory(ref *vm.Ref) bool {
	if ref == nil {
		return false
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // not os.Open, whose Read waits for the next record
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // it was only read from
	return hasOOMKill(func(p []byte) (int, error) { return unix.Read(fd, p) }, ref)
}

// hasOOMKill reports whether a record of the kernel's log says that the process was
// killed for lack of memory. Each read returns one.
func hasOOMKill(read func([]byte) (int, error), ref *vm.Ref) bool {
	killed := fmt.Sprintf("Killed process %d (", ref.PID)
	record := make([]byte, kernelRecord)
	for range maxRecords {
		n, err := read(record)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) { // EPIPE: records were overwritten
			continue
		}
		if err != nil {
			return false // EAGAIN: there are no more
		}
		text := string(record[:n])
		if strings.Contains(text, "ut of memory") && strings.Contains(text, killed) && isOfKernelSince(text, time.Duration(ref.StartTime)*clockTick) {
			return true
		}
	}
	return false
}

// isOfKernelSince reports whether a record was printed by the kernel, and not by a
// program, so long after the boot or later. It begins with priority, number and
// microseconds; see dev-kmsg in the kernel's ABI documentation.
func isOfKernelSince(record string, uptime time.Duration) bool {
	fields := strings.SplitN(record, ",", 4)
	if len(fields) < 4 {
		return false
	}
	priority, err := strconv.Atoi(fields[0])
	if err != nil || priority >= firstUserPart {
		return false
	}
	us, err := strconv.ParseInt(fields[2], 10, 64)
	return err == nil && time.Duration(us)*time.Microsecond >= uptime
}
