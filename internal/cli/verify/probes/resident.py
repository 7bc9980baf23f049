"""A program that runs across the fork. There are two of it:

plain knows nothing of forks. It serves TCP and TLS, and may hold a connection
to the outside. registered reseeds when it is told that it is a copy, and holds
connections to plain.
"""

import fcntl
import hashlib
import os
import random
import signal
import socket
import ssl
import sys
import threading
import time

import draw

PATIENCE = 20  # seconds for a peer to answer: four such waits are less than collect.sh allows, and it is more than a busy machine needs
RUN = os.environ.get("WRENN_RUN", "/run/wrenn")  # where envd announces forks


class Server:
    """Answers each line with the same, over TCP, and over TLS at another port."""

    def __init__(self):
        for name, wrap in (("tcp", lambda conn: conn), ("tls", self.secure)):
            listener = socket.create_server(("127.0.0.1", 0), backlog=16)
            with open(name + ".new", "w") as port:
                port.write(str(listener.getsockname()[1]))
            os.rename(name + ".new", name + ".port")
            threading.Thread(target=self.accept, args=(listener, wrap), daemon=True).start()

    def secure(self, conn):
        return draw.server_context().wrap_socket(conn, server_side=True)

    def accept(self, listener, wrap):
        while True:
            threading.Thread(target=self.serve, args=(listener.accept()[0], wrap), daemon=True).start()

    def serve(self, conn, wrap):
        with wrap(conn) as conn:
            while line := conn.recv(100):
                conn.sendall(line)


def connect(name):
    with open(name + ".port") as port:
        return socket.create_connection(("127.0.0.1", int(port.read())), timeout=PATIENCE)


class Secure:
    """A TLS connection whose records can be looked at."""

    def __init__(self):
        self.conn = connect("tls")
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = draw.client_context().wrap_bio(self.received, self.sent)
        self.until(self.tls.do_handshake)
        self.ask(b"hello\n")

    def until(self, step):
        """Runs step until it needs no more from the peer."""
        while True:
            try:
                out = step()
            except ssl.SSLWantReadError:
                out = None
            else:
                self.conn.sendall(self.sent.read())
                return out
            self.conn.sendall(self.sent.read())
            data = self.conn.recv(1 << 14)
            if not data:
                raise ConnectionError("the peer closed")
            self.received.write(data)

    def ask(self, line):
        """Says a line and hears it again. The record that carries it is kept."""
        self.tls.write(line)
        self.record = self.sent.read()
        self.conn.sendall(self.record)
        if self.until(lambda: self.tls.read(100)) != line:
            raise ConnectionError("another answer than what was sent")


def same(conn):
    """Says a line to a server and hears it again."""
    conn.settimeout(PATIENCE)
    conn.sendall(b"line\n")
    if conn.recv(100) != b"line\n":
        raise ConnectionError("another answer than what was sent")


class Plain:
    def __init__(self, outside):
        self.outside = None
        self.server = Server()
        if outside:
            self.host, _, port = outside.rpartition(":")
            try:
                self.outside = socket.create_connection((self.host.strip("[]"), int(port)), timeout=PATIENCE)
            except OSError as err:
                self.failure = "not connected: %s" % err

    def answer(self):
        yield from draw.draws()

    def late(self):
        """The connection to the outside: last, since it may take a while."""
        if self.outside is None:
            return "outside", getattr(self, "failure", "none")
        try:
            self.outside.settimeout(PATIENCE)
            self.outside.sendall(b"HEAD / HTTP/1.1\r\nHost: %s\r\n\r\n" % self.host.encode())
            return "outside", "answers" if self.outside.recv(1 << 16) else "closed"
        except OSError as err:
            return "outside", "fails: %s" % err


class Registered:
    def __init__(self):
        self.heard, self.heard_at = 0, 0.0
        self.tcp, self.secure = connect("tcp"), Secure()
        same(self.tcp)
        signal.signal(signal.SIGUSR1, self.on_fork)  # first the handler
        self.registration = open("%s/notify.d/%d" % (RUN, os.getpid()), "w")  # the registration ends when it is closed
        self.registration.write("USR1")
        self.registration.flush()
        fcntl.flock(self.registration, fcntl.LOCK_EX)

    def on_fork(self, *_):
        self.heard_at = time.time()
        self.heard += 1
        random.seed()
        ssl.RAND_add(os.urandom(32), 32)

    def answer(self):
        yield "heard", self.heard
        yield "heard_at", "%.6f" % self.heard_at
        yield from draw.draws()
        yield "tcp", outcome(lambda: same(self.tcp))
        yield "new_tcp", outcome(lambda: same(connect("tcp")))
        yield "new_tls", outcome(Secure)
        yield "tls", outcome(lambda: self.secure.ask(b"the same text\n"))
        yield "tls_record", hashlib.sha256(self.secure.record).hexdigest()[:32]


def outcome(step):
    """Returns ok, or why step failed."""
    try:
        step()
        return "ok"
    except Exception as err:
        return "%s: %s" % (type(err).__name__, err)


def main():
    role = sys.argv[1]
    program = Plain(sys.argv[2]) if role == "plain" else Registered()
    while True:
        with open(role + ".in") as question:
            question.read()
        lines = list(program.answer())
        if role == "plain":
            lines.append(program.late())
        with open(role + ".out", "w") as answer:
            for name, value in lines:
                print(role + "." + name, " ".join(str(value).split()), file=answer)


main()
