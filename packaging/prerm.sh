#!/bin/sh
# Runs before the package's files are removed ("remove") or replaced ("upgrade").
set -e
[ "$1" = remove ] || exit 0
if [ -d /run/systemd/system ]; then
	# Also pauses the sandboxes: their state stays, their machines do not.
	wrenn up --uninstall
fi
