package main

import (
	"errors"
	"strings"
	"syscall"
	"unsafe"
)

// loadModules loads the modules that the manifest lists, in its order, frees
// their files, and makes the device files that load others. A module that the
// kernel refuses is reported and skipped: what needs it will fail and say why.
func loadModules(manifest string) error {
	list, err := readFile(manifest)
	if err != nil {
		return wrap("read "+manifest, err)
	}
	for path := range strings.FieldsSeq(string(list)) {
		if path != "/lib/ptp_kvm.ko" || onKVM() {
			if err := loadModule(path); err != nil && !errors.Is(err, syscall.EEXIST) {
				complain(wrap("load "+path, err))
			}
		}
		free(path)
	}
	makeNodes()
	return nil
}

// onKVM reports whether the host offers KVM's clock. Trying to load ptp_kvm
// instead takes an emulated machine 40 ms.
func onKVM() bool {
	clocks, err := readFile("/sys/devices/system/clocksource/clocksource0/available_clocksource")
	return err == nil && strings.Contains(string(clocks), "kvm-clock")
}

func loadModule(path string) error {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer release(fd)
	params := [1]byte{} // none, NUL-terminated
	if _, _, errno := syscall.Syscall(finitModule, uintptr(fd), uintptr(unsafe.Pointer(&params[0])), 0); errno != 0 {
		return errno
	}
	return nil
}

// readFile reads a small file.
func readFile(path string) ([]byte, error) {
	const limit = 1 << 16
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer release(fd)
	buf := make([]byte, limit)
	n := 0
	for n < limit {
		m, err := syscall.Read(fd, buf[n:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}
