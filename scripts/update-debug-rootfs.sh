#!/bin/bash
# Writes this build's guest agent, init and tini into an image that
# rootfs-from-container.sh made, and checks the image's file system:
#
#	scripts/update-debug-rootfs.sh NAME [--state DIR]
#
# A changed copy replaces the image in one step; nothing is mounted.
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
