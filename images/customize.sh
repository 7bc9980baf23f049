#!/bin/sh
# Turns a fresh Debian tree ($1) into a guest's, and fetches the kernel of the
# same suite into $WRENN_KERNEL_DIR, with a modprobe that runs in any image. Run by mmdebstrap as a customize hook.
set -eu
root=$1

# One kernel for every guest: that of Debian for clouds.
(
	cd "$WRENN_KERNEL_DIR"
	export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
	apt-get download -qq -o APT::Sandbox::User=root "$package" busybox-static
)

# Users: root, and one with uid 1000 who may become root without a password.
chroot "$root" useradd --create-home --shell /bin/bash --uid 1000 user
echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/user"
chmod 440 "$root/etc/sudoers.d/user"

# What systemd and Debian's installer add elsewhere. The file of comments would
# cost each boot ten milliseconds to read.
ln -s ../proc/self/mounts "$root/etc/mtab"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"
rm -f "$root/etc/sysctl.conf"

# PID 1, static: nothing in the image can break it by a library.
cp "$root/usr/bin/tini-static" "$root/usr/sbin/tini"

# These came from the host that builds.
echo sandbox >"$root/etc/hostname"
printf '127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf"
printf 'nameserver 1.1.1.1\nnameserver 8.8.8.8\n' >"$root/etc/resolv.conf"
chmod 644 "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf"
: >"$root/etc/machine-id"
