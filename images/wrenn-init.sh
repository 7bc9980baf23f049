#!/bin/sh
# PID 1 of a guest until tini takes over: mounts what is not mounted yet, empties
# /tmp, sets the kernel's values, limits, host name and locale, brings up the
# loopback, runs the agent. docs/guest-image.md lists the results.
#
# Nothing here may end this script, whatever the image lacks, so there is no
# `set -e`; and programs are run only where the shell cannot do it itself, since
# each costs an emulated machine ten milliseconds. After stage0 it runs none.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
export PATH HOME
unset ip root init # the kernel made variables of them

complain() { echo "wrenn-init: $*" >/dev/console; }

# ensure TYPE DIR OPTIONS mounts a file system that the kernel has, where none is.
ensure() {
	case $mounts in *" $2 "*) return ;; esac
	[ -n "$types" ] || types=$(cat /proc/filesystems)
	case $types in *"	$1"*) ;; *) return ;; esac
	[ -d "$2" ] || mkdir -p "$2"
	mount -t "$1" -o "$3" "$1" "$2" || complain "cannot mount $2"
}

[ -r /proc/mounts ] || mount -t proc -o nosuid,nodev,noexec proc /proc
mounts=' ' types=''
while read -r _ dir _; do mounts="$mounts$dir "; done </proc/mounts
read -r _ kib _ </proc/meminfo # what there is in all
kib=${kib:-0}

# As in cmd/stage0/runtime.go, which has done this where it ran and says why.
case $mounts in *' /run '*) alone= ;; *) alone=yes ;; esac
ensure sysfs /sys nosuid,nodev,noexec
ensure devtmpfs /dev "nosuid,size=2%,nr_inodes=$((kib / 64))"
ensure devpts /dev/pts nosuid,noexec,gid=5,mode=620,ptmxmode=666
ensure tmpfs /dev/shm "nosuid,nodev,mode=1777,size=33%,nr_inodes=$((kib / 32))"
ensure mqueue /dev/mqueue nosuid,nodev,noexec
ensure hugetlbfs /dev/hugepages nosuid,nodev
ensure tmpfs /run "nosuid,nodev,mode=755,size=8%,nr_inodes=$((kib / 128))"
ensure tmpfs /run/lock "nosuid,nodev,noexec,mode=1777,size=1%,nr_inodes=$((kib / 512))"
ensure tmpfs /run/user "nosuid,nodev,mode=755,size=4%,nr_inodes=$((kib / 256))"
ensure cgroup2 /sys/fs/cgroup nosuid,nodev,noexec,nsdelegate
ensure securityfs /sys/kernel/security nosuid,nodev,noexec
ensure debugfs /sys/kernel/debug nosuid,nodev,noexec,mode=700
ensure tracefs /sys/kernel/tracing nosuid,nodev,noexec,mode=700
ensure bpf /sys/fs/bpf nosuid,nodev,noexec,mode=700

link() { [ -L "$2" ] || ln -sf "$1" "$2" || complain "cannot make $2"; }
link /proc/self/fd /dev/fd
link /proc/self/fd/0 /dev/stdin
link /proc/self/fd/1 /dev/stdout
link /proc/self/fd/2 /dev/stderr
link /proc/kcore /dev/core
[ -e /etc/mtab ] || link ../proc/self/mounts /etc/mtab
true >/run/utmp

# What was in /tmp before this boot is put out of sight, since a million files
# take long to remove, and removed beside what follows.
old=/.tmp-before-boot
if [ -n "$alone" ]; then
	mount --make-rshared / || complain 'mounts do not propagate'
	for node in /dev/fuse /dev/net/tun; do # all users', as udev has it
		[ ! -c $node ] || chmod 666 $node
	done
	{ rm -rf $old && mkdir -m 700 $old && mv /tmp $old && mkdir /tmp && chmod 1777 /tmp; } || complain 'cannot empty /tmp'
fi
if [ -e $old ]; then rm -rf $old & fi
[ -w /tmp ] || ensure tmpfs /tmp "nosuid,nodev,mode=1777,size=4%,nr_inodes=$((kib / 256))" # the disk is read-only

for controller in cpu cpuset io memory pids; do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || complain "no cgroup controller $controller"
done

# setting PATH VALUE, below /proc/sys; what the kernel does not have is left out.
setting() {
	for file in /proc/sys/$1; do # it may be a pattern
		[ ! -w "$file" ] || printf '%s\n' "$2" >"$file" || complain "the kernel refuses $1 = $2"
	done
}

# What the kernel does every second or more often, for its statistics and to have
# large pieces of memory at hand, is most of what an idle guest costs its host.
setting vm/compaction_proactiveness 0
setting vm/stat_interval 60
# What systemd and Debian's procps set, and what programs want that watch many
# files or map many pieces of memory.
setting fs/file-max 9223372036854775807
setting fs/inotify/max_user_instances 1024
setting fs/inotify/max_user_watches 524288
setting fs/protected_fifos 1
setting fs/protected_hardlinks 1
setting fs/protected_regular 2
setting fs/protected_symlinks 1
setting kernel/pid_max 4194304
setting net/ipv4/ping_group_range '0 2147483647'
setting vm/max_map_count 1048576
# The image's own, sysctl.conf(5).
for conf in /etc/sysctl.d/*.conf /etc/sysctl.conf; do
	[ -f "$conf" ] || continue
	while IFS='= 	' read -r key value; do
		case $key in '' | '#'* | ';'*) continue ;; esac
		rest=${key#-} path=
		case $rest in */*) path=$rest rest= ;; esac
		while [ -n "$rest" ]; do # dots to slashes
			path=$path${path:+/}${rest%%.*}
			case $rest in *.*) rest=${rest#*.} ;; *) rest= ;; esac
		done
		setting "$path" "$value"
	done <"$conf"
done

# shellcheck disable=SC3045 # dash, bash and busybox know -H and -S
{ ulimit -H -n 524288 && ulimit -S -n 1024; } || complain 'cannot raise the limit of open files'

echo sandbox >/proc/sys/kernel/hostname || complain 'cannot set the host name'

# Bit 0 of the flags is IFF_UP; the loopback has 0x8 when down and 0x9 when up.
read -r flags </sys/class/net/lo/flags
if [ "$flags" = 0x8 ]; then
	ip link set lo up || ifconfig lo up || complain 'cannot bring up the loopback'
fi

# -s follows links: a link to nowhere counts as missing, as does an empty file,
# which is what container runtimes leave.
if [ ! -s /etc/resolv.conf ]; then
	rm -f /etc/resolv.conf
	printf 'nameserver 1.1.1.1\nnameserver 8.8.8.8\n' >/etc/resolv.conf || complain 'no name server is set'
fi

# The locale is the image's, else UTF-8 where its C library has that.
unset LANG
[ ! -d /usr/lib/locale/C.utf8 ] && [ ! -e /lib/ld-musl-x86_64.so.1 ] || LANG=C.UTF-8
for file in /etc/locale.conf /etc/default/locale; do
	[ -f $file ] || continue
	while IFS='=' read -r key value; do
		[ "$key" != LANG ] || LANG=${value#[\"\']}
	done <$file
done
[ -z "$LANG" ] || export LANG="${LANG%[\"\']}"

# The shell ends when an exec fails, so what would fail is asked first.
if [ -x /sbin/tini ]; then
	exec /sbin/tini -- /usr/local/bin/envd
fi
complain 'no /sbin/tini: envd runs as PID 1, orphaned processes are not reaped'
exec /usr/local/bin/envd
