#!/bin/bash
# Installs the package in a booted machine of a distribution, as a user would, and
# makes it a service; upgrades it with a sandbox that runs, removes and installs it
# again: verify-install.sh bookworm|trixie|noble. The machine is a QEMU guest with
# systemd, whose processor has virtualization, so the sandboxes in it use KVM; without
# KVM on this machine QEMU emulates all of that, which takes half an hour.
# INSTALL_DIR keeps what is made, INSTALL_MEMORY is the machine's memory in MiB,
# INSTALL_FIRECRACKER a directory with firecracker and jailer of the release that is used,
# for a machine that cannot download them, INSTALL_MIRROR the mirror of the packages: of
# Ubuntu's it must be given, for Debian mmdebstrap has one.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?bookworm, trixie or noble}
dir=${INSTALL_DIR:-$PWD/.cache/install}
case $suite in
bookworm | trixie) kernel=linux-image-amd64 components=main keyring=/usr/share/keyrings/debian-archive-keyring.gpg ;;
noble)
	: "${INSTALL_MIRROR:?the URL of a mirror of Ubuntu}"
	kernel=linux-image-virtual components=main,universe keyring=$dir/ubuntu-keyring.gpg
	;;
*) echo "unknown distribution $suite" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || { echo 'wrenn: making a root file system needs root' >&2; exit 1; }
mkdir -p "$dir"

# package VERSION: makes $dir/VERSION.deb.
package() {
	[ -e "$dir/$1.deb" ] && return
	VERSION=$1 scripts/dist.sh amd64 >/dev/null
	mv "dist/wrenn_$1_amd64.deb" "$dir/$1.deb"
	rm -f dist/*"$1"*
}

# ubuntu_keys takes the keys of Ubuntu's archive from its package, whose checksum is that of
# ubuntu-keyring 2023.11.28.1.
ubuntu_keys() {
	local deb=$dir/ubuntu-keyring.deb
	curl -fsS -o "$deb" "$INSTALL_MIRROR/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
	echo "$ubuntu_keyring_sum  $deb" | sha256sum --check --quiet
	dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/share/keyrings/ubuntu-archive-keyring.gpg >"$keyring"
}
ubuntu_keyring_sum=36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8

# system makes $dir/$suite.tar: the distribution with what the package depends on.
system() {
	[ -e "$dir/$suite.tar" ] && return
	local depends
	depends=$(dpkg-deb --field "$dir/0.0.1.deb" Depends Recommends | sed 's/^[A-Za-z]*: //; s/ *|[^,]*//g; s/, */,/g' | paste -sd,)
	if [ "$suite" = noble ]; then
		ubuntu_keys
	fi
	mmdebstrap --mode=root --format=tar --variant=minbase --components="$components" --keyring="$keyring" --aptopt='APT::Install-Recommends "false"' \
		--include="systemd-sysv,systemd-resolved,dbus,udev,initramfs-tools,$kernel,$depends" "$suite" "$dir/$suite.tar.new" ${INSTALL_MIRROR:+"$INSTALL_MIRROR"}
	mv "$dir/$suite.tar.new" "$dir/$suite.tar"
}

# images makes the guest image as the machine would: its Debian follows the distribution.
# Here that is quicker.
images() {
	local root=$1 programs=$1/root/programs
	if [ ! -e "$dir/images-$suite" ]; then
		dpkg-deb -x "$dir/0.0.1.deb" "$programs"
		rm -f "$root/etc/resolv.conf"
		cp /etc/resolv.conf "$root/etc/resolv.conf"
		# Not chroot, below which a program cannot make its own root.
		# shellcheck disable=SC2016 # the other shell's
		unshare --mount --propagation private bash -euc '
			mount --bind "$1" "$1"
			cd "$1"
			mount -t proc proc proc
			mount --rbind /sys sys
			mount --rbind /dev dev
			mkdir old
			pivot_root . old
			umount -l /old
			rmdir /old
			/root/programs/usr/bin/wrenn-host-agent image prepare --images /var/lib/wrenn/images' bash "$root"
		rm -rf "$programs" "$root/etc/resolv.conf"
		cp -r --sparse=always "$root/var/lib/wrenn/images" "$dir/images-$suite"
	fi
	mkdir -p "$root/var/lib/wrenn"
	chmod 700 "$root/var/lib/wrenn"
	cp -r --sparse=always "$dir/images-$suite" -T "$root/var/lib/wrenn/images"
}

# disk makes the machine's disk, kernel and initial file system.
disk() {
	local root=$dir/root release
	rm -rf "$root"
	mkdir -p "$root"
	tar -C "$root" -xf "$dir/$suite.tar"
	cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
	cp "$root"/boot/initrd.img-* "$dir/initrd"
	cp "$dir"/0.0.[12].deb scripts/verify-install-guest.sh "$root/root/"
	images "$root"
	if [ -n "${INSTALL_FIRECRACKER:-}" ]; then
		release=$root/var/lib/wrenn/firecracker-$(sed -n 's/^const Version = "\(.*\)"/\1/p' internal/vm/firecracker/release/release.go)
		mkdir "$release"
		cp "$INSTALL_FIRECRACKER"/{firecracker,jailer} "$release/"
	fi
	echo machine >"$root/etc/hostname"
	printf '127.0.0.1 localhost machine\n' >"$root/etc/hosts"
	printf '/dev/vda / ext4 defaults 0 0\n' >"$root/etc/fstab"
	mkdir -p "$root/etc/systemd/network"
	printf '[Match]\nDriver=virtio_net\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/up.network"
	ln -sf /run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"
	cat >"$root/etc/systemd/system/verify.service" <<-'UNIT'
		[Unit]
		Wants=network-online.target
		After=network-online.target multi-user.target
		[Service]
		Type=oneshot
		Environment=HOME=/root
		ExecStart=/bin/bash /root/verify-install-guest.sh
		ExecStopPost=/bin/systemctl poweroff
		StandardOutput=file:/dev/ttyS1
		StandardError=file:/dev/ttyS1
	UNIT
	mkdir -p "$root/etc/systemd/system/graphical.target.wants"
	ln -sf ../verify.service "$root/etc/systemd/system/graphical.target.wants/verify.service"
	chroot "$root" systemctl -q enable systemd-networkd systemd-resolved systemd-networkd-wait-online
	truncate -s 16G "$dir/disk"
	mke2fs -q -t ext4 -F -d "$root" "$dir/disk"
	rm -rf "$root"
}

# machine boots the disk and prints what the check says. See e2e/nested for the
# options: without KVM, one CPU, a known rate of the time-stamp counter, and a byte now
# and then, whose interrupt wakes the machine should it miss that of its timer.
machine() {
	# shellcheck disable=SC2054 # the commas are QEMU's
	local khz accel=(-accel tcg,thread=multi,tb-size=512 -cpu EPYC -smp 1)
	khz=$(awk '/^bogomips/ {printf "%d", $3 * 500; exit}' /proc/cpuinfo)
	if [ -n "${INSTALL_KVM:-}" ]; then
		accel=(-accel kvm -cpu host -smp 2)
	fi
	(while sleep 0.5; do printf ' '; done) | timeout 5400 qemu-system-x86_64 -M q35 "${accel[@]}" -m "${INSTALL_MEMORY:-4096}" \
		-nodefaults -no-user-config -display none -no-reboot -kernel "$dir/vmlinuz" -initrd "$dir/initrd" \
		-append "root=/dev/vda rw console=ttyS0 panic=-1 tsc_early_khz=$khz tsc=reliable" \
		-drive id=d0,file="$dir/disk",format=raw,if=none,cache=unsafe -device virtio-blk-pci,drive=d0 \
		-netdev user,id=n0 -device virtio-net-pci,netdev=n0 -device virtio-rng-pci \
		-serial file:"$dir/console.log" -serial stdio | tee "$dir/result.log" || true # who sends the bytes ends by SIGPIPE
	grep -q '^installed, upgraded, removed' <(tr -d '\r' <"$dir/result.log")
}

package 0.0.1
package 0.0.2
system
disk
machine
