#!/bin/bash
# Installs what building, running and testing Wrenn needs on Debian 12, Debian 13
# and Ubuntu 24.04. Does nothing when all of it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# command:package
needs=(
	qemu-system-x86_64:qemu-system-x86
	mmdebstrap:mmdebstrap
	mke2fs:e2fsprogs
	mkfs.xfs:xfsprogs
	dpkg-deb:dpkg
	curl:curl
	git:git
	shellcheck:shellcheck
	pg_ctlcluster:postgresql # the tests and wrenn up start their own servers
)
# Ubuntu's mmdebstrap needs Debian's keys to make a Debian guest.
# shellcheck source=/dev/null
[ "$(. /etc/os-release && echo "$ID")" = debian ] || needs+=(/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring)

have() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
	esac
}

go_fits() { # Go 1.21 and newer download the version that go.mod names
	command -v go >/dev/null && [ "$(printf '%s\n' go1.21 "$(go env GOVERSION)" | sort -V | head -n1)" = go1.21 ]
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "wrenn: installing ${packages[*]} needs root: run make as root" >&2
		exit 1
	fi
}

go_from_distribution() { # succeeds when the distribution has a Go that is new enough
	local version
	version=$(apt-cache policy golang-go | sed -n 's/.*Candidate: \(.*:\)\?//p')
	[ "$(printf '%s\n' 1.21 "$version" | sort -V | head -n1)" = 1.21 ]
}

go_from_upstream() {
	local version sum file
	version=$(sed -n 's/^go \([0-9.]*\)$/\1/p' go.mod)
	file=go$version.linux-amd64.tar.gz
	echo "wrenn: this distribution's Go is too old: fetching $file from go.dev"
	mkdir -p .cache
	curl -fsSL --retry 3 -o ".cache/$file" "https://go.dev/dl/$file"
	sum=$(curl -fsSL "https://dl.google.com/go/$file.sha256")
	echo "$sum  .cache/$file" | sha256sum --check --quiet
	rm -rf .cache/go
	tar -C .cache -xzf ".cache/$file"
	rm ".cache/$file"
}

packages=()
for need in "${needs[@]}"; do
	have "${need%%:*}" || packages+=("${need#*:}")
done

if [ ${#packages[@]} -gt 0 ] || ! go_fits; then
	command -v apt-get >/dev/null || { echo "wrenn: please install: ${packages[*]} and Go 1.21 or newer" >&2; exit 1; }
	echo "wrenn: installing what is missing: ${packages[*]:-}" "$(go_fits || echo Go)"
	as_root apt-get update -qq
	if ! go_fits && go_from_distribution; then
		packages+=(golang-go)
	fi
	if [ ${#packages[@]} -gt 0 ]; then
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
	fi
	go_fits || go_from_upstream
fi
