package modules

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestForGuests(t *testing.T) {
	tree := kernelTree(t, "lib/modules", map[string][]byte{
		"fs/overlayfs/overlay.ko":                       nil,
		"net/netfilter/nf_tables.ko.xz":                 nil,
		"drivers/net/veth.ko":                           nil,
		"drivers/net/wireguard/wireguard.ko":            nil,
		"drivers/block/loop.ko":                         nil,
		"drivers/net/ethernet/intel/e1000/e1000.ko":     nil,
		"drivers/infiniband/core/ib_core.ko":            nil,
		"drivers/blockade/not-a-block.ko":               nil,
		"drivers/net/ethernet-like/of-another-name.ko":  nil,
		"drivers/block/xen-blkback/xen-blkback.ko":      nil,
		"arch/x86/crypto/sha256-ssse3.ko":               nil,
		"drivers/scsi/megaraid/a-raid-controller-hw.ko": nil,
	})
	dir, err := modulesDir(tree)
	if err != nil {
		t.Fatal(err)
	}
	got, err := forGuests(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"loop", "nf_tables", "of_another_name", "overlay", "sha256_ssse3", "veth", "wireguard"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules mismatch (-want +got):\n%s", diff)
	}
}
