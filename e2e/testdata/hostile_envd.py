"""A hostile program in place of envd: each connection gets another answer from it.

It moves the guest's network interface into a namespace where envd is not, and
listens there at envd's port. Its argument is a URL of the host, to redirect to.

With an address and "hang" it is healthy and refuses all, but never answers a question to stop
the guest's processes, and sends a datagram to port 9 of the address when that comes.
"""

import gzip
import itertools
import socket
import subprocess
import sys
import threading
import time

ADDRESS = "169.254.0.21"


def move():
    for command in (
        "ip netns add hostile",
        "ip link set eth0 netns hostile",
        f"ip -n hostile address add {ADDRESS}/30 dev eth0",
        "ip -n hostile link set lo up",
        "ip -n hostile link set eth0 up",
        "ip -n hostile route add default via 169.254.0.22",
    ):
        subprocess.run(command.split(), check=True)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ZIP = gzip.compress(bytes(4 << 20))


def repeat(head, part):
    yield head
    while True:
        yield part


def trickle():
    yield OK + b"\r\n"
    while True:
        time.sleep(1)
        yield b" "


ANSWERS = (
    lambda: repeat(b"HTTP/1.1 200 OK\r\n", b"X-Flood: " + b"a" * 4000 + b"\r\n"),
    lambda: repeat(b"HTTP/1.1 200 OK\r\nX-One: ", b"a" * 65536),
    lambda: repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    trickle,
    lambda: [b"HTTP/1.1 307 Away\r\nLocation: " + sys.argv[1].encode() + b"\r\nContent-Length: 0\r\n\r\n"],
    lambda: repeat(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", b"a" * 65536),
    lambda: repeat(OK + b"Content-Encoding: gzip\r\n\r\n", ZIP),
    lambda: repeat(OK + b"\r\n", b"[" * 65536),
    lambda: repeat(OK + b"\r\n", b'{"a":"' + b"b" * 65536),
    lambda: repeat(b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+proto\r\n\r\n", b"\x00\xff\xff\xff\xff" + b"a" * 65536),
    lambda: repeat(b"HTTP/1.1 500 Bad\r\nContent-Type: application/json\r\n\r\n", b"a" * 65536),
    lambda: [b"\x00\xff" * 100],
    lambda: [],
    lambda: [OK + b"Content-Length: 99999999999999999999\r\n\r\n"],
)


def answer(conn, parts):
    try:
        conn.recv(65536)
        for part in parts:
            conn.sendall(part)
    except OSError:
        pass
    finally:
        conn.close()


def main():
    move()
    # The namespace is entered by a second process: this Python has no setns.
    subprocess.run(["ip", "netns", "exec", "hostile", sys.executable, __file__, *sys.argv[1:], "serve"], check=True)


def hang(conn):
    request = conn.recv(65536)
    if not request.startswith(b"POST /freeze "):
        status = b"204 Well" if request.startswith(b"GET /health ") else b"404 No"
        conn.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        conn.close()
        return
    signal = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:  # one may be lost
        signal.sendto(b"asked", (sys.argv[1], 9))
        time.sleep(1)


def serve():
    server = socket.create_server((ADDRESS, 49983), backlog=100)
    for make in itertools.cycle(ANSWERS):
        conn, _ = server.accept()
        if "hang" in sys.argv:
            threading.Thread(target=hang, args=(conn,), daemon=True).start()
            continue
        threading.Thread(target=answer, args=(conn, make()), daemon=True).start()


serve() if "serve" in sys.argv else main()
