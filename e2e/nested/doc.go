// Package nested tests what needs a KVM where there is none: QEMU emulates a
// machine (L1) whose kernel has one, and the tests of Firecracker, of QEMU with KVM and
// of a whole host run in it, against real guests (L2).
package nested
