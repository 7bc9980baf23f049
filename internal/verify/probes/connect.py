"""Looks, as root, at how this copy begins a connection: at the SYN, on the loopback."""

import os
import socket
import struct
import time

FIXED = 61234  # a source port of our own choice: the same four numbers in every copy
ETH_P_IP = 0x0800


def syn(watch, port):
    """Returns source port and sequence number of the next SYN to port."""
    while True:
        packet = watch.recv(200)
        header = 14 + (packet[14] & 15) * 4
        source, target, sequence = struct.unpack_from("!HHI", packet, header)
        if packet[23] == socket.IPPROTO_TCP and target == port and packet[header + 13] & 0x12 == 0x02:
            return source, sequence


def main():
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    with open("tcp.port") as f:
        port = int(f.read())
    watch = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
    watch.bind(("lo", 0))
    watch.settimeout(5)
    conn = socket.create_connection(("127.0.0.1", port), timeout=5)
    print("connect.port", syn(watch, port)[0])
    conn.close()

    conn = socket.socket()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    conn.bind(("127.0.0.1", FIXED))
    now = time.time_ns()
    conn.connect(("127.0.0.1", port))
    # The kernel adds its clock, a tick each 64 ns, to a secret of the four
    # numbers: net/core/secure_seq.c. What is left is the secret, but for the
    # time between two lines of this program.
    print("connect.secret", (syn(watch, port)[1] - (now >> 6)) % (1 << 32))
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT: the port is free again
    conn.close()


main()
