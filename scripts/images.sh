#!/bin/bash
# Writes the images of the control plane and of the host agent to dist/images as OCI
# layouts: images.sh [ARCH], by default amd64. The same commit, Go and authorities give
# the same digests in every directory. VERSION and COMMIT take the place of what git says.
set -euo pipefail
cd "$(dirname "$0")/.."

arch=${1:-amd64}
COMMIT=${COMMIT:-$(git describe --always --abbrev=40 --exclude='*' --dirty)}
VERSION=${VERSION:-$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null || true)}
date=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}" +%Y-%m-%dT%H:%M:%SZ)
stamp="-X wrenn.dev/internal/buildinfo.version=${VERSION#v} -X wrenn.dev/internal/buildinfo.commit=$COMMIT -X wrenn.dev/internal/buildinfo.date=$date"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# For this machine, whatever the images are for.
go build -trimpath -buildvcs=false -o "$work/images" ./packaging/images

export CGO_ENABLED=0 GOOS=linux GOARCH=$arch
unset GOFLAGS GOAMD64 GOARM64 # a user's own would make other bytes
mkdir -p "$work/programs"
# As in the Makefile: what is in an image of a guest is named by its bytes, so no commit is in it.
go build -trimpath -buildvcs=false -ldflags='-s -w' -o "$work/programs/" ./cmd/envd ./cmd/stage0
go build -trimpath -buildvcs=false -ldflags="-s -w $stamp" -o "$work/programs/" ./cmd/control-plane ./cmd/host-agent

# image NAME USER PROGRAM...
image() {
	local name=$1 user=$2
	shift 2
	rm -rf "dist/images/$name"
	printf '%s %s\n' "$name" "$("$work/images" -out "dist/images/$name" -arch "$arch" -user "$user" -version "${VERSION#v}" -revision "$COMMIT" "${@/#/$work/programs/}")"
}

mkdir -p dist/images
image wrenn-control-plane 65532:65532 control-plane
image wrenn-host-agent 0:0 host-agent envd stage0
