"""Looks, as root, at how this copy begins a connection: at the SYN, on the loopback."""

import os
import socket
import struct
import time

FIXED = 61234  # a fixed source port: the same addresses and ports in every copy
ETH_P_IP = 0x0800
SYN, ACK = 0x02, 0x10
PATIENCE = 20  # seconds, on a busy machine
TRIES = 5  # a capture on a busy loopback may miss a packet


def sequence(watch, port):
    """Returns the sequence number of the next SYN from FIXED to port, or None when it does not come."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            packet = watch.recv(200)
        except TimeoutError:
            return None
        header = 14 + (packet[14] & 15) * 4
        source, target, number = struct.unpack_from("!HHI", packet, header)
        if packet[23] == socket.IPPROTO_TCP and (source, target) == (FIXED, port) and packet[header + 13] & (SYN | ACK) == SYN:
            return number
    return None


def secret(port):
    """Returns what is the kernel's own in the sequence number of a connection from FIXED to port."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP)) as watch, socket.socket() as conn:
        watch.bind(("lo", 0))
        watch.settimeout(PATIENCE)
        conn.settimeout(PATIENCE)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT: the port is free again
        conn.bind(("127.0.0.1", FIXED))
        now = time.time_ns()
        conn.connect(("127.0.0.1", port))
        number = sequence(watch, port)
    # The kernel adds its clock, with ticks of 64 ns, to a secret hash of the
    # addresses and ports: net/core/secure_seq.c. Without the clock the secret is
    # left, off by the time between two lines of this program.
    return None if number is None else (number - (now >> 6)) % (1 << 32)


def main():
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    with open("tcp.port") as f:
        port = int(f.read())
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as conn:
        print("connect.port", conn.getsockname()[1])
    for _ in range(TRIES):
        value = secret(port)
        if value is not None:
            print("connect.secret", value)
            return
    raise SystemExit("the SYN of a connection did not show on the loopback")


main()
