#!/bin/sh
# Starts, in its own directory, the programs that run across the fork, and
# returns when each has answered once. Prints what the guest has, one fact per line.
#
# A program reads requests from NAME.in and answers to NAME.out: named pipes,
# because a template must have only a shell.
cd "${0%/*}" || exit

resident() { # NAME COMMAND...
	name=$1
	shift
	mkfifo "$name.in" "$name.out" || exit
	setsid "$@" </dev/null >"$name.log" 2>&1 &
	answer=$(sh ask.sh "$name" 60) || {
		echo "$name does not answer: $(tail -c 500 "$name.log")" >&2
		exit 1
	}
}

if python3 -c 'import ssl' 2>python.log; then
	resident plain python3 resident.py plain "$1"
	resident registered python3 resident.py registered
	echo "python $(python3 -c 'import ssl, sys; print(sys.version.split()[0], ssl.OPENSSL_VERSION)')"
fi
if node -e 'require("crypto")' 2>node.log; then
	resident node node resident.js
	echo "node $(node -p 'process.version, process.version + " OpenSSL " + process.versions.openssl')"
fi
if openssl version >/dev/null 2>&1; then
	echo "openssl $(openssl version | cut -d ' ' -f 2)"
fi
if [ -s /etc/machine-id ]; then
	echo "machine-id yes"
fi
