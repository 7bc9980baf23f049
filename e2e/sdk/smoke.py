"""What users of E2B's Python SDK do first, against Wrenn.

E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY say where it is. It ends with 0 and
prints "ok" when everything was as it should be.
"""
import importlib.metadata
import os
import sys
import threading
import time
import urllib.error
import urllib.request

import e2b
from e2b import Sandbox


def check(what, got, want):
    if got != want:
        sys.exit(f"{what}: got {got!r}, want {want!r}")


print("e2b", importlib.metadata.version("e2b"))
sandbox = Sandbox.create(timeout=600, metadata={"made by": "smoke & test"}, envs={"GREETING": "hello"})
try:
    check("is_running", sandbox.is_running(), True)

    result = sandbox.commands.run("echo $GREETING; echo oops >&2; whoami; pwd")
    check("stdout", result.stdout, "hello\nuser\n/home/user\n")
    check("stderr", result.stderr, "oops\n")
    try:
        sandbox.commands.run("exit 3")
        sys.exit("exit 3 raised nothing")
    except e2b.CommandExitException as failed:
        check("exit code", failed.exit_code, 3)
    check("root", sandbox.commands.run("id -u", user="root").stdout, "0\n")

    lines = []
    sandbox.commands.run("for i in 1 2 3; do echo $i; done", on_stdout=lambda text: lines.append(text))
    check("streamed", "".join(lines), "1\n2\n3\n")

    background = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    sandbox.commands.send_stdin(background.pid, "input\n")
    check("stdin", background.wait().stdout, "got input\n")
    sleeper = sandbox.commands.run("sleep 1000", background=True)
    if sleeper.pid not in [p.pid for p in sandbox.commands.list()]:
        sys.exit("the sleeping command is not listed")
    check("kill", sandbox.commands.kill(sleeper.pid), True)

    sandbox.files.write("hello.txt", "content")
    check("read", sandbox.files.read("hello.txt"), "content")
    check("read bytes", bytes(sandbox.files.read("hello.txt", format="bytes")), b"content")
    check("exists", (sandbox.files.exists("hello.txt"), sandbox.files.exists("no.txt")), (True, False))
    sandbox.files.make_dir("a/b")
    sandbox.files.rename("hello.txt", "a/b/moved.txt")
    check("list", [entry.name for entry in sandbox.files.list("a/b")], ["moved.txt"])
    sandbox.files.remove("a")
    try:
        sandbox.files.read("a/b/moved.txt")
        sys.exit("a removed file can be read")
    except e2b.NotFoundException:
        pass

    watcher = sandbox.files.watch_dir("/home/user")
    sandbox.files.write("watched.txt", "x")
    deadline = time.monotonic() + 60
    seen = []
    while "watched.txt" not in [event.name for event in seen]:
        if time.monotonic() > deadline:
            sys.exit(f"the new file was not seen: {seen}")
        seen += watcher.get_new_events()
        time.sleep(0.1)
    watcher.stop()

    # A signed URL needs no token, and where one URL serves all sandboxes it has no id.
    url = sandbox.download_url("watched.txt", use_signature_expiration=60)
    check("signed URL", urllib.request.urlopen(url).read(), b"x")
    try:
        urllib.request.urlopen(url.replace("watched", "other"))
        sys.exit("a signature opens another file")
    except urllib.error.HTTPError as refused:
        check("signed for another file", refused.code, 401)

    if "E2B_DOMAIN" in os.environ:
        sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True, cwd="/home/user")
        deadline = time.monotonic() + 60
        page = None
        while page is None:
            try:
                page = urllib.request.urlopen(f"https://{sandbox.get_host(8000)}/watched.txt").read()
            except urllib.error.HTTPError as closed:  # the server has not begun
                if closed.code != 502 or time.monotonic() > deadline:
                    raise
        check("get_host", page, b"x")

    sandbox.set_timeout(1200)
    info = sandbox.get_info()
    check("metadata", info.metadata, {"made by": "smoke & test"})
    listed = Sandbox.list(query=e2b.SandboxQuery(metadata={"made by": "smoke & test"})).next_items()
    check("list", [s.sandbox_id for s in listed], [sandbox.sandbox_id])

    # The host's gateway may have no way to the internet: what is denied is known by the time that it takes.
    if hasattr(sandbox, "update_network"):
        sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["8.8.8.8"]})
        info = sandbox.get_info()
        check("network", (list(info.network["deny_out"]), list(info.network["allow_out"])), (["0.0.0.0/0"], ["8.8.8.8"]))
        sandbox.update_network({})
        check("no network", sandbox.get_info().network, None)

    if hasattr(sandbox, "create_snapshot"):
        sandbox.files.write("saved.txt", "in the snapshot")
        snapshot = sandbox.create_snapshot()
        check("snapshots", [s.snapshot_id for s in sandbox.list_snapshots().next_items()], [snapshot.snapshot_id])
        copy = Sandbox.create(snapshot.snapshot_id, timeout=600)
        try:
            check("from the snapshot", copy.files.read("saved.txt"), "in the snapshot")
        finally:
            copy.kill()
        check("delete the snapshot", Sandbox.delete_snapshot(snapshot.snapshot_id), True)
        check("delete it twice", Sandbox.delete_snapshot(snapshot.snapshot_id), False)

    if hasattr(sandbox, "pause"):
        sandbox.commands.run("echo kept > /tmp/kept")
        sandbox.commands.run("sleep 1000", background=True)
        sandbox.commands.run("until pgrep -x sleep; do :; done")  # the shell of the command before has begun it
        sandbox.pause()
        check("paused", sandbox.is_running(), False)
        same = Sandbox.connect(sandbox.sandbox_id)
        check("resumed", same.commands.run("cat /tmp/kept; pgrep -c sleep").stdout, "kept\n1\n")

    # By now it has run for longer than the 5 s between two samples; the first comes within 10 s.
    deadline = time.monotonic() + 120
    while not (metrics := sandbox.get_metrics()):
        if time.monotonic() > deadline:
            sys.exit("no metrics")
        time.sleep(0.5)
    if metrics[0].cpu_count < 1 or metrics[0].mem_total <= 0 or metrics[0].disk_total <= 0:
        sys.exit(f"metrics: {metrics[0]}")

    # A kill during a command is reported as the end of the sandbox, not as a network error.
    outcome = []

    def run():
        try:
            sandbox.commands.run("sleep 1000", timeout=0)
        except Exception as failed:
            outcome.append(failed)

    running = threading.Thread(target=run)
    running.start()
    deadline = time.monotonic() + 60
    while not any("sleep 1000" in " ".join([p.cmd, *p.args]) for p in sandbox.commands.list()):
        if time.monotonic() > deadline:
            sys.exit("the command does not begin")
        time.sleep(0.1)
finally:
    killed = sandbox.kill()
check("kill", killed, True)
running.join(60)
version = tuple(int(part) for part in importlib.metadata.version("e2b").split("."))
# The first versions pass on the error of the connection that was reset.
if not outcome or version >= (2, 31) and not isinstance(outcome[0], e2b.TimeoutException):
    sys.exit(f"the command that the kill cut ended with {outcome!r}, want a TimeoutException")
check("kill twice", sandbox.kill(), False)
print("ok")
