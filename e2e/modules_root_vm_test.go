//go:build root && vm

package e2e

import (
	"testing"

	"wrenn.dev/internal/host/sandbox"
)

// loadable are modules that a guest can load.
const loadable = "overlay fuse nf_tables nft_compat nft_chain_nat ip_tables iptable_nat ip6table_filter bridge br_netfilter veth dummy tun loop " +
	"squashfs erofs nfs nfsv4 ip_vs ip_vs_rr xt_conntrack xt_MASQUERADE xt_addrtype nls_iso8859_1 nls_cp437 vfat isofs vxlan wireguard macvlan ipvlan " +
	"dm_mod btrfs xfs zram nbd"

// testModules checks the modules of the guest's kernel: all can be loaded, and the
// kernel and its programs load them on demand.
func testModules(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	for _, tt := range []struct{ user, script, want string }{
		{"root", "modprobe -n -a " + loadable, ""},
		{"user", `exec 3<>/dev/fuse && grep -c '^fuse ' /proc/modules`, "1"},
		{"root", `exec 3<>/dev/net/tun && grep -c '^tun ' /proc/modules`, "1"},
		{"root", `losetup -f && grep -c '^loop ' /proc/modules`, "/dev/loop0\n1"},
		{"root", `cd $(mktemp -d) && mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m && touch m/x && ls u && umount m`, "x"},
		{"root", `ip link add d0 type dummy && ip link add b0 type bridge && ip link add v0 type veth && ip link | grep -cE ' (d0|b0|v0)[:@]'`, "3"},
		{"root", `nft add table ip t && nft list tables`, "table ip t"},
		{"root", `iptables -t nat -A POSTROUTING -m conntrack --ctstate NEW -j MASQUERADE && iptables-legacy -t nat -S | wc -l`, "4"},
		{"root", `grep -c '^user:' /etc/subuid /etc/subgid`, "/etc/subuid:1\n/etc/subgid:1"},
		{"user", `unshare --map-root-user --map-auto sh -c 'wc -l </proc/self/uid_map'`, "2"},
	} {
		if got := shAs(t, sb, tt.user, tt.script); got != tt.want {
			t.Errorf("%s printed %q, want %q", tt.script, got, tt.want)
		}
	}
}
