// Package nested tests with Firecracker where there is no KVM: QEMU emulates a
// machine (L1) whose kernel has one, and the tests of the Firecracker driver and
// of a whole host run in it, against real guests (L2).
package nested
