#!/bin/bash
# What verify-install.sh does in the machine, as root.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec 2>&1

step() { printf '\n#### %s (%ss)\n' "$*" "$SECONDS"; }
failed() {
	printf '\n#### failed at line %s\n' "$1"
	systemctl --no-pager status wrenn || true
}
trap 'failed $LINENO' ERR
journalctl -fu wrenn -o cat --no-tail &

# answers succeeds when the service answers: after a start, and again after an upgrade.
answers() {
	for _ in $(seq 300); do
		wrenn sandbox list >/dev/null 2>&1 && return
		sleep 1
	done
	wrenn sandbox list
}

# kept succeeds when the sandbox has its file and its process.
kept() {
	local says
	# shellcheck disable=SC2016 # the sandbox's shell
	says=$(wrenn sandbox exec kept -- sh -c 'cat /home/user/file; kill -0 $(cat /tmp/pid) && echo runs')
	[ "$says" = $'before\nruns' ]
}

# shellcheck source=/dev/null
step "$(. /etc/os-release && echo "$PRETTY_NAME"), $(uname -r), $(systemctl --version | head -n1)"
apt-get install -y -q /root/0.0.1.deb
wrenn version
step 'wrenn up --install'
wrenn up --install
systemctl is-enabled wrenn
systemctl is-active wrenn
answers
step 'wrenn doctor'
wrenn doctor || true
step 'a sandbox'
wrenn run -- uname -a
wrenn sandbox create --name kept
wrenn sandbox exec kept -- sh -c 'echo before >/home/user/file; (sleep 1000000 & echo $! >/tmp/pid)'
step 'cgroups'
systemd-cgls --no-pager | grep -v '\.mount' | head -n 60
find /sys/fs/cgroup -name memory.max -path '*wrenn*' -exec grep -H . {} + | head -n 20

step 'upgrade'
apt-get install -y -q /root/0.0.2.deb
wrenn version
answers
kept

step 'remove'
apt-get remove -y -q wrenn
if pgrep -a 'firecracker|qemu-system|wrenn'; then
	echo 'processes are left'
	exit 1
fi
if systemctl cat wrenn; then
	echo 'a unit is left'
	exit 1
fi
if ip netns list | grep .; then
	echo 'a network is left'
	exit 1
fi
[ -d /var/lib/wrenn ]

step 'install again'
apt-get install -y -q /root/0.0.2.deb
wrenn up --install
answers
wrenn sandbox list
wrenn sandbox resume kept
kept
wrenn sandbox kill kept
apt-get purge -y -q wrenn
step 'the end'
echo 'installed, upgraded, removed'
