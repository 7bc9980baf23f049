package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ConsoleSize is how much of a VMM's standard output is kept.
	ConsoleSize = 256 << 10
	// LogSize is how much of its standard error is kept.
	LogSize = 16 << 10
)

// rewindEvery is the pause between two checks whether a ring must be rewound. A
// guest that prints more than half the ring within it loses some output.
const rewindEvery = time.Second

// ring is a file of a fixed size for what a VMM prints. The kernel holds the
// bound: the file is a memfd sealed against growing. A write beyond its end fails
// (EPERM), so while no agent runs the VMM drops output and continues. A pipe would
// fill up and stall the guest, a plain file would grow, and a limit on file sizes
// (RLIMIT_FSIZE) would apply to disks too.
//
// A running agent makes a ring of the file: it shares the VMM's open file
// description, and with that the offset, and sets the offset back to the start in
// time. So the last output is kept, not the first.
type ring struct {
	file *os.File
	size int64

	mu    sync.Mutex // guards what follows
	marks marks
}

func newRing(name string, size int64) (*ring, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if err := errors.Join(unix.Ftruncate(fd, size), seal(fd)); err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &ring{file: os.NewFile(uintptr(fd), name), size: size}, nil
}

// ringSeals are the seals of a ring's file.
const ringSeals = unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

func seal(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, ringSeals)
	return err
}

// errNotARing is the error for a descriptor of a VMM that is not what Start gave it.
var errNotARing = errors.New("the VMM has exchanged the file of its output")

// adoptRing returns the ring that a running VMM has as the given descriptor. The VMM
// may have put any other file there, so adoptRing accepts only a memfd with a ring's
// size and seals: no read of it blocks and no write of ours reaches another file.
func adoptRing(pidfd, fd int, name string) (*ring, error) {
	mine, err := unix.PidfdGetfd(pidfd, fd, 0) // opening it by name would give it another offset
	if errors.Is(err, unix.EBADF) {            // closed
		return nil, errNotARing
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_getfd: %w", err)
	}
	r := &ring{file: os.NewFile(uintptr(mine), name)}
	if r.size, err = ringSize(mine); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// ringSize returns the size of a ring's file, and errNotARing for any other file.
func ringSize(fd int) (int64, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals != ringSeals {
		return 0, errNotARing
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, err
	}
	if stat.Size != ConsoleSize && stat.Size != LogSize {
		return 0, errNotARing
	}
	return stat.Size, nil
}

// adoptRings returns the rings of a running VMM. An older agent gave a VMM one ring
// for both of its outputs: then log is nil. A ring is also nil if the VMM has exchanged
// it: a machine without output can be adopted, and stopped.
func adoptRings(pidfd int) (console, log *ring, err error) {
	console, err = adoptRing(pidfd, unix.Stdout, "console")
	if err != nil && !errors.Is(err, errNotARing) {
		return nil, nil, err
	}
	log, err = adoptRing(pidfd, unix.Stderr, "log")
	if err != nil && !errors.Is(err, errNotARing) {
		console.close()
		return nil, nil, err
	}
	if log != nil && console != nil && log.isSame(console) {
		log.close()
		log = nil
	}
	return console, log, nil
}

func (r *ring) isSame(other *ring) bool {
	mine, err := r.file.Stat()
	if err != nil {
		return false
	}
	its, err := other.file.Stat()
	return err == nil && os.SameFile(mine, its)
}

// rewind goes back to the start of the file when half of it is written. It wipes
// what is behind the offset, so that the order of the output stays known: the bytes
// from the offset on are older than those before it.
func (r *ring) rewind() {
	if r == nil {
		return
	}
	pos, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil || pos < r.size/2 {
		return
	}
	if _, err := r.file.Seek(0, io.SeekStart); err == nil && pos < r.size {
		_, _ = r.file.WriteAt(make([]byte, r.size-pos), pos) // best effort: at worst the order is mixed up
	}
}

// tail returns what the file holds, oldest first.
func (r *ring) tail() []byte {
	if r == nil {
		return nil
	}
	all := make([]byte, r.size)
	n, err := r.file.ReadAt(all, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	pos, err := r.file.Seek(0, io.SeekCurrent) // which the VMM can set to anything
	if err != nil || pos < 0 || pos > int64(n) {
		pos = int64(n)
	}
	// Bytes that were never written, or were wiped, are zero.
	return bytes.ReplaceAll(append(all[pos:n:n], all[:pos]...), []byte{0}, nil)
}

// close closes the file. A nil ring is allowed.
func (r *ring) close() {
	if r != nil {
		r.file.Close()
	}
}

// rewindRings keeps the rings from getting full until gone is closed. It works by
// the clock: inotify would take one of the 128 instances that a user has by default
// for each machine.
func rewindRings(gone <-chan struct{}, rings ...*ring) {
	for _, r := range rings {
		r.look() // what an earlier agent's VMM has printed
	}
	tick := time.NewTicker(rewindEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, r := range rings {
				r.look()
			}
		case <-gone:
			return
		}
	}
}
