#!/bin/bash
# Makes the images in this tree, and in a copy elsewhere: the same sources must give the
# same digests. Untracked files are left out.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
VERSION=0.0.0 SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) COMMIT=$(git rev-parse HEAD)
export VERSION SOURCE_DATE_EPOCH COMMIT
git ls-files -z | tar --null --files-from=- --ignore-failed-read -c 2>/dev/null | tar -C "$copy" -x

here=$(scripts/images.sh)
there=$("$copy/scripts/images.sh")
if [ "$here" != "$there" ]; then
	printf 'the digests differ by the directory that the images were made in:\n%s\n%s\n' "$here" "$there" >&2
	exit 1
fi
printf 'another directory makes the same images:\n%s\n' "$here"
