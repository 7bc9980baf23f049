package vm

import (
	"net"
	"os"
	"regexp"

	"wrenn.dev"
)

// The limits of a Spec.
const (
	maxDir       = 60
	maxVCPUs     = 32
	minMemoryMiB = 64
	maxMemoryMiB = 1 << 20 // 1 TiB: more than any host has, and safe to multiply
	maxDisks     = 8       // microvm has 24 virtio-mmio slots; a few are enough
)

var (
	validID  = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	validTAP = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`) // IFNAMSIZ less the final zero
)

// Check returns an Invalid error that names what is wrong with the spec, or nil.
// It demands a kernel only if the machine boots one.
func (s Spec) Check(boots bool) error {
	for _, c := range []struct {
		ok  bool
		msg string
	}{
		{validID.MatchString(s.ID), "a machine's id is 1 to 40 of a-z, 0-9 and -"},
		{s.Dir != "" && len(s.Dir) <= maxDir, "the path of a machine's directory has 1 to 60 bytes"},
		{s.VCPUs >= 1 && s.VCPUs <= maxVCPUs, "a machine has 1 to 32 vCPUs"},
		{s.MemoryMiB >= minMemoryMiB && s.MemoryMiB <= maxMemoryMiB && s.MemoryMiB%2 == 0, "a machine has 64 MiB of memory or more, and an even number"},
		{!boots || s.Kernel.Image != "", "a machine that boots needs a kernel"},
		{len(s.Disks) <= maxDisks, "a machine has at most 8 disks"},
		{s.Net.TAP == "" || validTAP.MatchString(s.Net.TAP), "invalid name of a network device"},
		{s.Net.TAP == "" || validMAC(s.Net.MAC), "a network device needs a unicast MAC address like 02:fc:00:00:00:05"},
		{s.UID != 0 || s.GID == 0, "a machine that runs as a group needs a user"},
	} {
		if !c.ok {
			return wrenn.Errorf(wrenn.Invalid, "%s", c.msg)
		}
	}
	for _, disk := range s.Disks {
		if disk.Path == "" {
			return wrenn.Errorf(wrenn.Invalid, "a disk needs a file")
		}
		if disk.Rate.BytesPerSecond < 0 || disk.Rate.OperationsPerSecond < 0 {
			return wrenn.Errorf(wrenn.Invalid, "the rate of a disk is negative")
		}
	}
	return nil
}

func validMAC(s string) bool {
	mac, err := net.ParseMAC(s)
	return err == nil && len(mac) == 6 && mac[0]&1 == 0 // the lowest bit marks a multicast address
}

// CheckEmpty returns FailedPrecondition unless dir is an existing, empty directory.
func CheckEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine's directory does not exist", Err: err}
	}
	if len(entries) > 0 {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the machine's directory is not empty: it has %.40q", entries[0].Name())
	}
	return nil
}
