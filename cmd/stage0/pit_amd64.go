package main

import (
	"runtime"
	"syscall"
)

// Ports of the interval timer, and the control word that, with a count of 0, stops
// its channel 0: one-shot mode (Intel 8254 data sheet, "Control Word Format").
const (
	pitCounter = 0x40
	pitMode    = 0x43
	pitOneShot = 0x30
)

// clockDevice is the file that names the device of the kernel's clock ticks on CPU 0.
const clockDevice = "/sys/devices/system/clockevents/clockevent0/current_device"

// outb writes a byte to a port.
func outb(port uint16, value uint8)

// stopPIT stops the interval timer unless the kernel uses it for its clock ticks.
// Linux before 6.13 leaves it running as the firmware set it up, and an emulator
// then wakes up 36 times a second for an idle guest.
func stopPIT() error {
	device, err := readFile(clockDevice)
	if err != nil || string(device) != "lapic\n" && string(device) != "lapic-deadline\n" {
		return wrap("read "+clockDevice, err)
	}
	runtime.LockOSThread() // ioperm(2) applies to the thread
	defer runtime.UnlockOSThread()
	if err := allowPIT(1); err != nil {
		return err
	}
	outb(pitMode, pitOneShot)
	outb(pitCounter, 0)
	outb(pitCounter, 0)
	return allowPIT(0)
}

// allowPIT allows or forbids this thread to use the timer's ports, by ioperm(2).
func allowPIT(on uintptr) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOPERM, pitCounter, pitMode-pitCounter+1, on); errno != 0 {
		return wrap("ioperm", errno)
	}
	return nil
}
