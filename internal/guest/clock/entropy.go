package clock

import (
	"os"
	"runtime"
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
	dev, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
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

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
