package main

import (
	"runtime"
	"syscall"
)

// Ports of the interval timer and what stops its channel 0: one-shot mode, and
// a count of 0 (Intel 8254 data sheet, "Control Word Format").
const (
	pitCounter = 0x40
	pitMode    = 0x43
	pitOneShot = 0x30
)

// clockDevice says by what the kernel's clock ticks on CPU 0.
const clockDevice = "/sys/devices/system/clockevents/clockevent0/current_device"

// outb writes a byte to a port.
func outb(port uint16, value uint8)

// stopPIT stops the interval timer unless the kernel's clock ticks by it. Linux
// before 6.13 lets it run on as the firmware left it, and an emulator then wakes up 36 times
// a second for a guest that does nothing.
func stopPIT() error {
	device, err := readFile(clockDevice)
	if err != nil || string(device) != "lapic\n" && string(device) != "lapic-deadline\n" {
		return wrap("read "+clockDevice, err)
	}
	runtime.LockOSThread() // the permission is the thread's
	defer runtime.UnlockOSThread()
	if err := allowPIT(1); err != nil {
		return err
	}
	outb(pitMode, pitOneShot)
	outb(pitCounter, 0)
	outb(pitCounter, 0)
	return allowPIT(0)
}

// allowPIT is ioperm(2) for the timer's ports.
func allowPIT(on uintptr) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOPERM, pitCounter, pitMode-pitCounter+1, on); errno != 0 {
		return wrap("ioperm", errno)
	}
	return nil
}
