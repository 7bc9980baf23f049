package clock

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSeed bounds one seed; 256 bits are enough, see random(4).
const maxSeed = 512

// poolInfo is struct rand_pool_info of linux/random.h, with room for maxSeed.
type poolInfo struct {
	entropyCount int32 // in bits
	bufSize      int32 // in bytes
	buf          [maxSeed]byte
}

// AddEntropy does RNDADDENTROPY and RNDRESEEDCRNG on /dev/urandom (random(4)). What is
// beyond 512 bytes is left out.
func (Kernel) AddEntropy(seed []byte) error {
	// Not by package os, which tries to have it polled: code that an emulated CPU
	// runs for the first time after a restore is what a restore takes.
	dev, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open /dev/urandom", err)
	}
	defer func() { _ = unix.Close(dev) }() // nothing is buffered
	info := newPoolInfo(seed)
	if err := ioctl(dev, unix.RNDADDENTROPY, unsafe.Pointer(info)); err != nil {
		return err
	}
	return ioctl(dev, unix.RNDRESEEDCRNG, nil)
}

func newPoolInfo(seed []byte) *poolInfo {
	info := &poolInfo{}
	n := copy(info.buf[:], seed)
	info.entropyCount, info.bufSize = int32(8*n), int32(n)
	return info
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
