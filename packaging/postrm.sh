#!/bin/sh
# Runs after the package's files are removed.
set -e
[ "$1" != upgrade ] || exit 0
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = remove ]; then
	rm -rf --one-file-system /run/wrenn # sockets; the machines have ended
fi
if [ "$1" = purge ] && [ -d /var/lib/wrenn ]; then
	echo "wrenn: the data stays in /var/lib/wrenn: sandboxes, images, database, keys" >&2
fi
