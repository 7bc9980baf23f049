"""Runs a command over exec/stream with a WebSocket client that is not Wrenn's.

Usage: stream.py URL KEY, with what the command gets as standard input. It
prints what came back and ends with the command's exit code.
"""

import base64
import json
import sys

import websocket  # Debian's python3-websocket

socket = websocket.create_connection(sys.argv[1], header={"X-API-Key": sys.argv[2]}, timeout=120)


def send(**frame):
    socket.send(json.dumps(frame))


send(type="start", cmd="sh", args=["-c", "tr a-z A-Z; exit 7"], stdin=True)
frame = json.loads(socket.recv())
assert frame["type"] == "start" and frame["pid"] > 0, frame
send(type="stdin", data=base64.b64encode(sys.stdin.buffer.read()).decode(), encoding="base64")
send(type="stdin_close")
while True:
    frame = json.loads(socket.recv())
    if frame["type"] == "stdout":
        data = frame["data"].encode()
        if frame.get("encoding") == "base64":
            data = base64.b64decode(data)
        sys.stdout.buffer.write(data)
    elif frame["type"] == "exit":
        break
    else:
        assert frame["type"] == "keepalive", frame
code, _ = socket.recv_data()
assert code == websocket.ABNF.OPCODE_CLOSE, code
sys.stdout.flush()
sys.exit(frame["exit_code"])
