#!/bin/bash
# Makes a bootable image of a container's files:
#
#	scripts/rootfs-from-container.sh CONTAINER NAME [--replace] [--state DIR]
#
# The container, running or not, is exported by docker or podman (or the command
# in WRENN_CONTAINER_CLI, options included) straight into host-agent, which
# checks it, adds the guest agent and init, and names missing programs.
set -euo pipefail

usage() {
	sed -n 's/^#\t/usage: /p' "$0" >&2
	exit 2
}

[ $# -ge 2 ] || usage
container=$1
name=$2
shift 2
case $container$name in -*) usage ;; esac

agent=$(dirname "$0")/../bin/host-agent
[ -x "$agent" ] || {
	echo "wrenn: bin/host-agent is missing: run make build" >&2
	exit 1
}

if [ -n "${WRENN_CONTAINER_CLI:-}" ]; then
	read -ra cli <<<"$WRENN_CONTAINER_CLI"
else
	cli=()
	for candidate in docker podman; do
		# Both may be installed, but only one has the container.
		if command -v "$candidate" >/dev/null && "$candidate" container inspect "$container" >/dev/null 2>&1; then
			cli=("$candidate")
			break
		fi
	done
	[ ${#cli[@]} -gt 0 ] || {
		echo "wrenn: neither docker nor podman knows a container $container (WRENN_CONTAINER_CLI names another program)" >&2
		exit 1
	}
fi

# A failed export has no end mark, and host-agent then keeps nothing of it. An
# export without a reader may hang forever (podman does), so the trap ends it
# whenever this script exits.
exec {stream}< <(exec "${cli[@]}" export "$container")
exporter=$!
trap 'kill "$exporter" 2>/dev/null || true' EXIT
"$agent" image from-container "$name" "$@" <&"$stream"
