#!/bin/bash
# Makes a release for this machine's architecture in this tree, and its tarball in a copy
# elsewhere: the same sources must give the same bytes. Untracked files are left out.
set -euo pipefail
cd "$(dirname "$0")/.."

arch=$(go env GOARCH)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
VERSION=0.0.0+verify SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) COMMIT=$(git rev-parse HEAD)
export VERSION SOURCE_DATE_EPOCH COMMIT
git ls-files -z | tar --null --files-from=- --ignore-failed-read -c 2>/dev/null | tar -C "$copy" -x

rm -f dist/*"$VERSION"*
scripts/dist.sh "$arch" >/dev/null
"$copy/scripts/dist.sh" -t "$arch" >/dev/null # the package has the same files
tarball=wrenn-$VERSION-linux-$arch.tar.gz
if ! cmp "dist/$tarball" "$copy/dist/$tarball"; then
	echo "the tarball differs by the directory that it was made in" >&2
	exit 1
fi
dpkg-deb --field "dist/wrenn_${VERSION}_$arch.deb" Package Architecture Depends Recommends
echo "another directory makes the same tarball: $(grep -F "$tarball" dist/SHA256SUMS)"
rm -f dist/*"$VERSION"*
