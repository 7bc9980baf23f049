package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// growLimit bounds POST /grow: under emulation 20 GiB take less than a second.
const growLimit = 30 * time.Second

// serveGrow grows the root file system to the size of its disk, which the host has
// made larger.
func (a *Agent) serveGrow(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Bytes int64 `json:"bytes"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req); err != nil || req.Bytes <= 0 {
		answerError(w, http.StatusBadRequest, "grow: bytes is the size of the disk, more than 0")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), growLimit)
	defer cancel()
	began := time.Now()
	if err := a.machine.GrowRoot(ctx, req.Bytes); err != nil {
		a.log.ErrorContext(ctx, "cannot grow the root file system", slog.Any("err", err))
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("grow: %v", err))
		return
	}
	a.log.DebugContext(ctx, "root file system has grown", slog.Int64("bytes", req.Bytes), slog.Duration("took", time.Since(began)))
	w.WriteHeader(http.StatusNoContent)
}

// GrowRoot grows the ext4 file system / while it is in use, by the kernel.
func (Kernel) GrowRoot(ctx context.Context, size int64) error {
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	var info unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &info); err != nil {
		return err
	}
	device := fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(info.Dev), unix.Minor(info.Dev))
	if err := awaitDevice(ctx, device, size); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &fs); err != nil {
		return err
	}
	// Otherwise the kernel would write zeros over the tables of the new inodes, 16 MiB
	// for each GiB. The disk's new part is zeros already.
	restore := setLazyTables(true)
	defer restore()
	return resizeExt4(root, uint64(size/fs.Bsize))
}

// resizeExt4 is EXT4_IOC_RESIZE_FS of linux/fs/ext4/ext4.h.
func resizeExt4(root *os.File, blocks uint64) error {
	const resizeFS = 0x40086610 // _IOW('f', 16, __u64)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return fmt.Errorf("resize the file system: %w", errno)
	}
	return nil
}

// setLazyTables mounts / with init_itable, which leaves tables of inodes to a thread
// of the kernel, that begins seconds later. The returned function mounts it without,
// as at the boot, which ends the thread. Kernels before 5.2 cannot: they write the
// tables.
func setLazyTables(lazy bool) (undo func()) {
	option := "noinit_itable"
	if lazy {
		option = "init_itable"
	}
	fd, err := unix.Fspick(unix.AT_FDCWD, "/", unix.FSPICK_CLOEXEC)
	if err != nil {
		return func() {}
	}
	defer func() { _ = unix.Close(fd) }()
	if unix.FsconfigSetFlag(fd, option) != nil || unix.FsconfigReconfigure(fd) != nil || !lazy {
		return func() {}
	}
	return func() { setLazyTables(false) }
}

// awaitDevice waits until a block device, whose size the file has in sectors, is at
// least size bytes large.
func awaitDevice(ctx context.Context, file string, size int64) error {
	events, err := blockEvents()
	if err != nil {
		return err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	event := make([]byte, 8<<10)
	for {
		now, err := deviceSize(file)
		if err != nil || now >= size {
			return err
		}
		if _, err := events.Read(event); err != nil && !errors.Is(err, unix.ENOBUFS) { // too many events: some are lost
			if ctx.Err() != nil {
				return fmt.Errorf("the disk has %d bytes, not yet %d: %w", now, size, context.Cause(ctx))
			}
			return fmt.Errorf("wait for the disk: %w", err)
		}
	}
}

func deviceSize(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return sectors * 512, err
}

// blockEvents returns a socket that can be read when the kernel has announced a change
// of a device: it does so when a disk's size changes.
func blockEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("socket for events of devices: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind the socket for events of devices: %w", err)
	}
	return os.NewFile(uintptr(fd), "events of devices"), nil
}
