"""Tries to reach what is closed to a guest: its arguments are a port and addresses.

Prints the addresses that accept a connection. Also sends datagrams and packets of
other IP protocols, with the guest's own address and MAC and with others.
"""

import itertools
import select
import socket
import struct
import sys

PORT = int(sys.argv[1])
ADDRESSES = sys.argv[2:]
GATEWAY = bytes.fromhex("02fc00000006")
OWN = ("169.254.0.21", bytes.fromhex("02fc00000005"))
SOURCES = (OWN, ("8.8.8.8", OWN[1]), ("127.0.0.1", OWN[1]), (OWN[0], bytes.fromhex("02fc00000099")))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, target, protocol, payload):
    def header(check):
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, check, socket.inet_aton(source), socket.inet_aton(target))

    return header(checksum(header(0))) + payload


def main():
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind(("eth0", 0))
    udp = struct.pack("!HHHH", 1000, PORT, 12, 0) + b"evil"
    for target, (source, mac) in itertools.product(ADDRESSES, SOURCES):
        for protocol, payload in ((17, udp), (47, bytes(12)), (4, packet(source, target, 17, udp))):
            link.send(GATEWAY + mac + b"\x08\x00" + packet(source, target, protocol, payload))
        # An answer of ARP that nobody asked for: target is at this guest.
        link.send(b"\xff" * 6 + mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + mac + socket.inet_aton(target) + GATEWAY + socket.inet_aton("169.254.0.22"))
    waiting = {}
    for target in ADDRESSES:
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex((target, PORT))
        waiting[s] = target
    _, ready, _ = select.select([], list(waiting), [], 5)
    for s in ready:
        if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            print(waiting[s])


main()
