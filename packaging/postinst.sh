#!/bin/sh
# Runs after the package's files are in place: "configure", with the old version at an upgrade.
set -e
[ "$1" = configure ] || exit 0
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers wrenn.conf
	systemd-tmpfiles --create wrenn.conf
	chgrp wrenn /etc/wrenn/control-plane.toml # it may hold a password
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# Sandboxes keep running: the next agent adopts them.
if [ -n "$2" ]; then
	systemctl try-restart --no-block wrenn.service wrenn-host-agent.service wrenn-control-plane.service
fi
