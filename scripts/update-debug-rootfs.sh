#!/bin/bash
# Puts this build's agent, init and tini into an image that
# rootfs-from-container.sh made, and checks its file system:
#
#	scripts/update-debug-rootfs.sh NAME [--state DIR]
#
# The image is replaced in one step by a changed copy; nothing is mounted.
set -euo pipefail

case ${1:--} in
-*)
	sed -n 's/^#\t/usage: /p' "$0" >&2
	exit 2
	;;
esac

agent=$(dirname "$0")/../bin/host-agent
[ -x "$agent" ] || {
	echo "wrenn: bin/host-agent is missing: run make build" >&2
	exit 1
}
exec "$agent" image update "$@"
