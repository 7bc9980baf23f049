#!/bin/sh
# PID 1 of a guest until tini takes over: mounts what is not mounted yet, brings
# up the loopback, sets host name and PATH, starts the clock, runs the agent.
#
# Nothing here may end this script, whatever the image lacks, so there is no
# `set -e`; and programs are run only where the shell cannot do it itself, since
# each costs an emulated machine ten milliseconds. After stage0 it runs none.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
export PATH HOME
unset ip root init # the kernel made variables of them

complain() { echo "wrenn-init: $*" >/dev/console; }

ensure() { # ensure TYPE DIR OPTIONS
	case $mounts in *" $2 "*) return ;; esac
	[ -d "$2" ] || mkdir -p "$2"
	mount -t "$1" -o "$3" "$1" "$2" || complain "cannot mount $2"
}

[ -r /proc/mounts ] || mount -t proc -o nosuid,nodev,noexec proc /proc
mounts=' '
while read -r _ dir _; do mounts="$mounts$dir "; done </proc/mounts
ensure sysfs /sys nosuid,nodev,noexec
ensure devtmpfs /dev nosuid
ensure devpts /dev/pts nosuid,noexec,gid=5,mode=620,ptmxmode=666
ensure tmpfs /dev/shm nosuid,nodev,mode=1777
ensure tmpfs /run nosuid,nodev,mode=755
ensure tmpfs /tmp nosuid,nodev,mode=1777
ensure cgroup2 /sys/fs/cgroup nosuid,nodev,noexec,nsdelegate

for controller in cpu cpuset io memory pids; do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || complain "no cgroup controller $controller"
done

# What the kernel does every second or more often, for its statistics and to have
# large pieces of memory at hand, is most of what an idle guest costs its host.
[ ! -e /proc/sys/vm/compaction_proactiveness ] || echo 0 >/proc/sys/vm/compaction_proactiveness # since Linux 5.9
echo 60 >/proc/sys/vm/stat_interval

echo sandbox >/proc/sys/kernel/hostname || complain 'cannot set the host name'

# Bit 0 of the flags is IFF_UP; the loopback has 0x8 when down and 0x9 when up.
read -r flags </sys/class/net/lo/flags
if [ "$flags" = 0x8 ]; then
	ip link set lo up || ifconfig lo up || complain 'cannot bring up the loopback'
fi

# -e follows links: a link to nowhere counts as missing.
if [ ! -e /etc/resolv.conf ]; then
	rm -f /etc/resolv.conf
	printf 'nameserver 1.1.1.1\nnameserver 8.8.8.8\n' >/etc/resolv.conf || complain 'no name server is set'
fi

# KVM's clock where there is one, else the host's by the network. Without either
# the time is only as good as at the last start or restore.
if command -v chronyd >/dev/null; then
	conf=/etc/chrony/wrenn-ntp.conf
	[ ! -e /dev/ptp0 ] || conf=/etc/chrony/chrony.conf
	[ ! -e $conf ] || chronyd -f $conf & # it becomes a daemon by itself; nobody waits until it has
fi

# The shell ends when an exec fails, so what would fail is asked first.
if [ -x /sbin/tini ]; then
	exec /sbin/tini -- /usr/local/bin/envd
fi
complain 'no /sbin/tini: envd runs as PID 1, nobody reaps'
exec /usr/local/bin/envd
