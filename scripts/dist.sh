#!/bin/bash
# Makes the tarballs and packages of a release in dist/: dist.sh [-t] [ARCH]..., by
# default amd64 and arm64; -t makes the tarballs alone. The same commit gives the same
# bytes in every directory, with the same Go.
# VERSION, COMMIT and SOURCE_DATE_EPOCH take the place of what git says.
set -euo pipefail
cd "$(dirname "$0")/.."

all=yes
if [ "${1:-}" = -t ]; then
	all=
	shift
fi
archs=("$@")
[ $# -gt 0 ] || archs=(amd64 arm64)

dirty=$(git status --porcelain --untracked-files=no 2>/dev/null | head -n1) || true # not a clone
COMMIT=${COMMIT:-$(git rev-parse HEAD)${dirty:+-dirty}}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
if [ -z "${VERSION:-}" ]; then # a tag v1.2.3; else one that sorts by time and before 0.1
	VERSION=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null | sed 's/^v//') || true
	VERSION=${VERSION:-0.0.0+$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).${COMMIT:0:12}}${dirty:+.dirty}
fi
export VERSION

export CGO_ENABLED=0 GOOS=linux
unset GOFLAGS GOAMD64 GOARM64 # a user's own would make other bytes
flags=(-trimpath -buildvcs=false) # no path and no state of the tree is in a program
stamp="-X wrenn.dev/internal/buildinfo.version=$VERSION -X wrenn.dev/internal/buildinfo.commit=$COMMIT -X wrenn.dev/internal/buildinfo.date=$date"
# The tool's own bytes are in the bill of materials.
tool() { env -u GOOS -u GOARCH GOFLAGS='-trimpath -buildvcs=false' go tool -modfile=packaging/tools.mod "$@"; }
umask 022

out=$PWD/dist
mkdir -p "$out"

# stage DIRECTORY: what both a tarball and a package have, in the places below /usr.
stage() {
	local to=$1
	mkdir -p "$to"/{bin,lib/wrenn,share/doc/wrenn/docs}
	# As in the Makefile: what is in an image of a guest is named by its bytes, so no commit is in it.
	go build "${flags[@]}" -ldflags='-s -w' -o "$to/lib/wrenn/" ./cmd/envd ./cmd/stage0 ./cmd/mcp-gateway
	go build "${flags[@]}" -ldflags="-s -w $stamp" -o "$to/bin/wrenn" ./cmd/wrenn
	for program in host-agent control-plane; do
		go build "${flags[@]}" -ldflags="-s -w $stamp" -o "$to/bin/wrenn-$program" "./cmd/$program"
	done
	cp README.md CHANGELOG.md LICENSE "$to/share/doc/wrenn/"
	cp docs/*.md "$to/share/doc/wrenn/docs/"
	mkdir -p "$to/share/wrenn/systemd"
	cp packaging/*.service packaging/*.slice packaging/*.toml packaging/wrenn.{sysusers,tmpfiles,logrotate} "$to/share/wrenn/systemd/"
}

# sbom STAGED: the modules that each program is made of, as its binary says.
sbom() {
	local program
	mkdir -p "$1/share/doc/wrenn/sbom"
	for program in "$1"/bin/* "$1"/lib/wrenn/*; do
		tool cyclonedx-gomod bin -json -std -noserial -notimestamp -version "$VERSION" -output "$1/share/doc/wrenn/sbom/${program##*/}.cdx.json" "$program"
	done
}

for arch in "${archs[@]}"; do
	export GOARCH=$arch
	name=wrenn-$VERSION-linux-$arch
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	stage "$work/$name"
	sbom "$work/$name"
	find "$work" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	tar --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$work" -c "$name" | gzip -n > "$out/$name.tar.gz"
	if [ -n "$all" ]; then
		for file in "$work/$name"/share/doc/wrenn/sbom/*; do
			cp "$file" "$out/$name.${file##*/}"
		done
		qemu=
		[ "$arch" != amd64 ] || qemu='qemu-system-x86' # there are no guests of another architecture
		rm -r "$work/$name/share/wrenn" # the package has them in their places
		STAGED=$work/$name PACKAGE_ARCH=$arch QEMU=$qemu tool nfpm package -f packaging/nfpm.yaml -p deb -t "$out/wrenn_${VERSION}_$arch.deb" >/dev/null
	fi
	rm -rf "$work"
done

cd "$out"
find . -maxdepth 1 -type f \( -name '*.tar.gz' -o -name '*.deb' -o -name '*.cdx.json' \) -name "*$VERSION*" -printf '%P\n' | LC_ALL=C sort | xargs sha256sum > SHA256SUMS
for arch in "${archs[@]}"; do
	ls -1 "$out"/*"$VERSION"*"$arch"*
done
