//go:build root || vm

package qemu

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"testing"
)

// kvmEnv is set to 1 for tests with KVM.
const kvmEnv = "WRENN_TEST_KVM"

// newDriver is of the QEMU that WRENN_TEST_QEMU names, or of the installed one; with
// WRENN_TEST_KVM=1 it uses KVM.
func newDriver(ctx context.Context) (*Driver, error) {
	path, err := exec.LookPath(cmp.Or(os.Getenv("WRENN_TEST_QEMU"), "qemu-system-x86_64"))
	if err != nil {
		return nil, err
	}
	return New(ctx, Config{Path: path, KVM: os.Getenv(kvmEnv) == "1"})
}

func testDriver(tb testing.TB) *Driver {
	tb.Helper()
	d, err := newDriver(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return d
}
