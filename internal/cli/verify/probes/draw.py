"""What a program draws: from its own memory, and from the kernel through the usual ways."""

import os
import random
import secrets
import ssl
import uuid

CERTIFICATE = "certificate.pem"
KEY_SHARE = 51  # RFC 8446, 4.2


def client_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the peer is this program
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def server_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def flight(end, out):
    """Lets end go on with its handshake and returns what it sends."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def handshake():
    """Returns the ClientHello and ServerHello of a new handshake in memory."""
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    client = client_context().wrap_bio(client_in, client_out)
    server = server_context().wrap_bio(server_in, server_out, server_side=True)
    client_hello = flight(client, client_out)
    server_in.write(client_hello)
    server_hello = flight(server, server_out)
    client_in.write(server_hello)
    server_in.write(flight(client, client_out))
    flight(server, server_out)
    return client_hello, server_hello


def hello(record):
    """Returns random and key share of a hello in a record: RFC 8446, 4.1.2, 4.1.3 and 4.2.8."""
    number = lambda at, size: int.from_bytes(record[at : at + size], "big")
    is_client = record[5] == 1
    at = 9 + 2 + 32  # headers of record and message, version, random
    at += 1 + number(at, 1)  # session id
    at += 2 + number(at, 2) if is_client else 2  # cipher suites, or the one
    at += 1 + number(at, 1) if is_client else 1  # compression
    end = at + 2 + number(at, 2)
    at += 2
    while at < end:
        kind, size = number(at, 2), number(at + 2, 2)
        if kind == KEY_SHARE:
            share = record[at + 4 : at + 4 + size]
            return record[11:43].hex(), share[-32:].hex()
        at += 4 + size
    raise ValueError("a hello without a key share")


def draws():
    """Yields names and values."""
    yield "random", "%032x" % random.getrandbits(128)
    yield "secrets", secrets.token_hex(16)
    yield "urandom", os.urandom(16).hex()
    yield "getrandom", os.getrandom(16).hex()
    yield "system_random", "%032x" % random.SystemRandom().getrandbits(128)
    yield "uuid4", str(uuid.uuid4())
    one = uuid.uuid1()
    yield "uuid1", "%012x-%04x" % (one.node, one.clock_seq)  # all but the time
    yield "openssl", ssl.RAND_bytes(16).hex()
    client, server = handshake()
    yield "client_random", hello(client)[0]
    yield "client_key", hello(client)[1]
    yield "server_random", hello(server)[0]
    yield "server_key", hello(server)[1]
