#!/bin/sh
# Prints the values of a sandbox, as lines of a name and a value.
cd "${0%/*}" || exit

for name in plain registered node; do # first of all, before anything else happens in this copy
	if [ -p "$name.in" ]; then
		sh ask.sh "$name" 100 || echo "error.$name it did not answer: $(tail -c 300 "$name.log" | tr '\n' ' ')"
	fi
done
echo "kernel.urandom $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')"
echo "kernel.uuid $(cat /proc/sys/kernel/random/uuid)"
echo "kernel.boot_id $(cat /proc/sys/kernel/random/boot_id)"
echo "kernel.machine_id $(cat /etc/machine-id 2>/dev/null)"
echo "kernel.hostname $(cat /proc/sys/kernel/hostname)"
sed -n 's/^\([a-z]*\)=/generation.\1 /p' "${WRENN_RUN:-/run/wrenn}/generation"
if [ -p plain.in ]; then
	python3 fresh.py 2>fresh.log || echo "error.fresh it failed: $(tail -c 300 fresh.log | tr '\n' ' ')"
fi
if openssl version >/dev/null 2>&1; then
	echo "fresh.openssl_key $(openssl genpkey -algorithm X25519 | openssl pkey -pubout -outform DER | tail -c 32 | od -An -tx1 | tr -d ' \n')"
fi
