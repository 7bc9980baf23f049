package clock

import (
	"os"
	"sync"
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

// urandom stays open from its first use on. Code that an emulated CPU runs for
// the first time is what a restore costs, and opening a file is much of it.
var urandom = sync.OnceValues(func() (int, error) {
	return unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
})

// AddEntropy does RNDADDENTROPY and RNDRESEEDCRNG on /dev/urandom (random(4)). It
// uses the first 512 bytes of seed.
func (Kernel) AddEntropy(seed []byte) error {
	dev, err := urandom()
	if err != nil {
		return os.NewSyscallError("open /dev/urandom", err)
	}
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
