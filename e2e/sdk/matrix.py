"""Calls every method of E2B's Python SDK against Wrenn, and reports on each.

E2B_API_KEY and E2B_DOMAIN, or E2B_API_URL and E2B_SANDBOX_URL, say where it is. harness.py says what it prints.
Arguments select methods by parts of their names.
"""
import asyncio
import functools
import importlib.metadata
import io
import os
import sys
import threading
import urllib.error
import urllib.request
import uuid

import e2b
from e2b import Sandbox

from harness import PATIENCE, Absent, Shared, equal, eventually, main, method, need, raises

VERSION = tuple(int(part) for part in importlib.metadata.version("e2b").split(".")[:3])
UNIQUE = uuid.uuid4().hex[:8]


def need_version(*version):
    """For what a version has, but no name tells."""
    if VERSION < version:
        raise Absent(".".join(map(str, version)))


def fetch(url, **kwargs):
    request = urllib.request.Request(url, **kwargs)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def create():
    return Sandbox.create(timeout=1800, metadata={"matrix": UNIQUE, "a b": "c&d"}, envs={"GREETING": "hello"})


shared = Shared(create)


# Sandboxes.

@method("Sandbox.create")
def _():
    sandbox = shared.get()
    equal(sandbox.commands.run("echo $GREETING $E2B_SANDBOX").stdout.split()[0], "hello")


@method("Sandbox.create(secure=False)")
def _():
    with_token = Sandbox.create(timeout=60, secure=False)
    try:
        equal(with_token.commands.run("echo a").stdout, "a\n")
    finally:
        with_token.kill()


@method("Sandbox.create(idempotency_key)")
def _():
    key = f"key-{uuid.uuid4()}"
    first = Sandbox.create(timeout=60, idempotency_key=key)
    try:
        equal(Sandbox.create(timeout=60, idempotency_key=key).sandbox_id, first.sandbox_id)
    finally:
        first.kill()


@method("Sandbox.create of a template that does not exist")
def _():
    refused = raises(Exception, Sandbox.create, f"missing-{UNIQUE}", timeout=60)
    if "404" not in str(refused) and "not found" not in str(refused):
        raise refused


@method("Sandbox.is_running")
def _():
    equal(shared.get().is_running(), True)


@method("Sandbox.get_info")
def _():
    sandbox = shared.get()
    info = sandbox.get_info()
    equal(info.sandbox_id, sandbox.sandbox_id)
    equal(info.metadata, {"matrix": UNIQUE, "a b": "c&d"})
    if info.cpu_count < 1 if hasattr(info, "cpu_count") else False:
        raise AssertionError(f"cpu_count is {info.cpu_count}")
    if not info.started_at < info.end_at:
        raise AssertionError(f"it ends at {info.end_at} and started at {info.started_at}")
    equal(Sandbox.get_info(sandbox.sandbox_id).sandbox_id, sandbox.sandbox_id)


@method("Sandbox.get_info: lifecycle and network")
def _():
    info = shared.get().get_info()
    need(info, "lifecycle")
    equal(info.lifecycle["on_timeout"], "kill")
    equal(info.lifecycle["auto_resume"], False)


@method("Sandbox.list")
def _():
    sandbox = shared.get()
    found = Sandbox.list(query=e2b.SandboxQuery(metadata={"matrix": UNIQUE, "a b": "c&d"}))
    found = found.next_items() if hasattr(found, "next_items") else found
    equal([s.sandbox_id for s in found], [sandbox.sandbox_id])


@method("Sandbox.list: pages")
def _():
    shared.get()
    second = Sandbox.create(timeout=60, metadata={"matrix": UNIQUE})
    try:
        pages = Sandbox.list(query=e2b.SandboxQuery(metadata={"matrix": UNIQUE}), limit=1)
        ids = []
        while pages.has_next:
            ids += [s.sandbox_id for s in pages.next_items()]
        equal(ids, [second.sandbox_id, shared.get().sandbox_id])
    finally:
        second.kill()


@method("Sandbox.list: states")
def _():
    state = getattr(e2b, "SandboxState", None)
    if state is None:
        raise Absent("SandboxState")
    found = Sandbox.list(query=e2b.SandboxQuery(metadata={"matrix": UNIQUE}, state=[state.PAUSED])).next_items()
    equal([s.sandbox_id for s in found], [])


@method("Sandbox.set_timeout")
def _():
    sandbox = shared.get()
    before = sandbox.get_info().end_at
    sandbox.set_timeout(3000)
    if not sandbox.get_info().end_at > before:
        raise AssertionError("it did not move the end")
    Sandbox.set_timeout(sandbox.sandbox_id, 1800)


@method("Sandbox.connect")
def _():
    sandbox = shared.get()
    end = sandbox.get_info().end_at
    same = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    equal(same.commands.run("echo same").stdout, "same\n")
    if VERSION >= (2, 6):  # before, it sets the timeout by a call of its own
        equal(same.get_info().end_at, end, "connect only extends: end_at")
    sandbox.set_timeout(1800)


@method("Sandbox.connect of a sandbox that does not exist")
def _():
    raises(e2b.NotFoundException, Sandbox.connect, "i" + "0" * 20)


@method("Sandbox.get_host")
def _():
    sandbox = shared.get()
    host = sandbox.get_host(8000)
    if sandbox.sandbox_id not in host:
        raise AssertionError(host)
    if "E2B_DOMAIN" not in os.environ:
        return  # with one URL for all it names a host that does not exist
    sandbox.files.write("/home/user/page/index.html", "the page")
    sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True, cwd="/home/user/page", timeout=0)

    def page():
        try:
            return fetch(f"https://{host}/")
        except urllib.error.HTTPError as closed:
            if closed.code != 502:
                raise
    equal(eventually(page, "the server answers"), b"the page")


@method("Sandbox.get_metrics")
def _():
    sandbox = shared.get()
    sample = eventually(sandbox.get_metrics, "a sample")[0]
    if sample.cpu_count < 1 or sample.mem_total <= 0 or sample.disk_total <= 0:
        raise AssertionError(f"{sample}")


@method("Sandbox.download_url")
def _():
    sandbox = shared.get()
    sandbox.files.write("signed.txt", "signed")
    equal(fetch(sandbox.download_url("signed.txt")), b"signed")
    expiring = sandbox.download_url("signed.txt", use_signature_expiration=60)
    equal(fetch(expiring), b"signed")
    equal(raises(urllib.error.HTTPError, fetch, expiring.replace("signed.txt", "other.txt")).code, 401)


@method("Sandbox.upload_url")
def _():
    sandbox = shared.get()
    boundary = "b" * 20
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="up.txt"\r\n\r\nuploaded\r\n--{boundary}--\r\n'.encode()
    fetch(sandbox.upload_url("up.txt"), data=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}, method="POST")
    equal(sandbox.files.read("up.txt"), "uploaded")


@method("Sandbox.update_network")
def _():
    sandbox = shared.get()
    need(sandbox, "update_network")
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["8.8.8.8"]})
    network = sandbox.get_info().network
    equal((list(network["deny_out"]), list(network["allow_out"])), (["0.0.0.0/0"], ["8.8.8.8"]))
    sandbox.update_network({})
    if sandbox.get_info().network and sandbox.get_info().network.get("deny_out"):
        raise AssertionError("an empty update left rules")


@method("Sandbox.create(allow_internet_access=False)")
def _():
    closed = Sandbox.create(timeout=60, allow_internet_access=False)
    try:
        info = closed.get_info()
        if hasattr(info, "allow_internet_access"):
            equal(info.allow_internet_access, False)
    finally:
        closed.kill()


@method("Sandbox.create(network: private ports)")
def _():
    need_version(2, 25)
    private = Sandbox.create(timeout=300, network={"allow_public_traffic": False, "mask_request_host": "localhost:${PORT}"})
    try:
        if not private.traffic_access_token:
            raise AssertionError("it has no traffic access token")
        network = private.get_info().network
        equal(network.get("allow_public_traffic"), False, "allow_public_traffic")
        equal(network.get("mask_request_host"), "localhost:${PORT}", "mask_request_host")
        if "E2B_DOMAIN" in os.environ:
            equal(raises(urllib.error.HTTPError, fetch, f"https://{private.get_host(8000)}/").code, 403)
            withtoken = {"e2b-traffic-access-token": private.traffic_access_token}
            equal(raises(urllib.error.HTTPError, fetch, f"https://{private.get_host(8000)}/", headers=withtoken).code, 502)
    finally:
        private.kill()


@method("Sandbox.create(network: domains)")
def _():
    need_version(2, 25)
    closed = Sandbox.create(timeout=60, network={"deny_out": ["0.0.0.0/0"], "allow_out": ["example.com"]})
    try:
        equal(list(closed.get_info().network["allow_out"]), ["example.com"])
    finally:
        closed.kill()


# Commands.

@method("commands.run")
def _():
    sandbox = shared.get()
    result = sandbox.commands.run("echo out; echo oops >&2; whoami; pwd")
    equal((result.stdout, result.stderr, result.exit_code), ("out\nuser\n/home/user\n", "oops\n", 0))


@method("commands.run: exit codes")
def _():
    equal(raises(e2b.CommandExitException, shared.get().commands.run, "echo no >&2; exit 3").exit_code, 3)


@method("commands.run(user, cwd, envs)")
def _():
    equal(shared.get().commands.run("id -u; pwd; echo $A", user="root", cwd="/tmp", envs={"A": "b"}).stdout, "0\n/tmp\nb\n")


@method("commands.run: an unknown user, a missing cwd")
def _():
    commands = shared.get().commands
    raises(e2b.AuthenticationException, commands.run, "true", user="nobodyhere")
    raises(e2b.InvalidArgumentException, commands.run, "true", cwd="/missing")


@method("commands.run(on_stdout, on_stderr)")
def _():
    out, err = [], []
    shared.get().commands.run("for i in 1 2 3; do echo $i; echo e$i >&2; done", on_stdout=out.append, on_stderr=err.append)
    equal(("".join(out), "".join(err)), ("1\n2\n3\n", "e1\ne2\ne3\n"))


@method("commands.run(timeout)")
def _():
    late = [e2b.TimeoutException]
    try:
        import httpcore  # older versions raise its error when their own clock, of the same time, is before the server's
        late.append(httpcore.ReadTimeout)
    except ImportError:
        pass
    raises(tuple(late), shared.get().commands.run, "sleep 1000", timeout=2)


@method("commands.run(background)")
def _():
    commands = shared.get().commands
    handle = commands.run("echo begun; sleep 1000", background=True, timeout=0)
    if handle.pid not in [p.pid for p in commands.list()]:
        raise AssertionError("it is not listed")
    equal(next(iter(handle))[0], "begun\n")
    equal(handle.kill(), True)
    equal(handle.kill(), False)
    raises(e2b.CommandExitException, handle.wait)


@method("commands.list")
def _():
    commands = shared.get().commands
    handle = commands.run("sleep 1001", background=True, timeout=0)
    found = [p for p in commands.list() if p.pid == handle.pid]
    equal([(p.cmd, list(p.args), p.tag or None) for p in found], [("/bin/bash", ["-l", "-c", "sleep 1001"], None)])
    handle.kill()


@method("commands.kill")
def _():
    commands = shared.get().commands
    handle = commands.run("sleep 1000", background=True, timeout=0)
    equal((commands.kill(handle.pid), commands.kill(999999)), (True, False))


@method("commands.send_stdin")
def _():
    commands = shared.get().commands
    try:
        handle = commands.run("read line; echo got $line", background=True, stdin=True)
    except TypeError:
        handle = commands.run("read line; echo got $line", background=True)  # it always has an input
    commands.send_stdin(handle.pid, "input\n")
    equal(handle.wait().stdout, "got input\n")


@method("commands.send_stdin to a process that does not exist")
def _():
    raises(e2b.NotFoundException, shared.get().commands.send_stdin, 999999, "x")


@method("commands.close_stdin")
def _():
    commands = shared.get().commands
    need(commands, "close_stdin")
    handle = commands.run("cat", background=True, stdin=True)
    commands.send_stdin(handle.pid, "all\n")
    commands.close_stdin(handle.pid)
    equal(handle.wait().stdout, "all\n")


@method("commands.stream_input")
def _():
    commands = shared.get().commands
    need(commands, "stream_input")
    handle = commands.run("head -c 12", background=True, stdin=True)
    commands.stream_input(handle.pid, iter(["first\n", b"second"[:6]]))
    equal(handle.wait().stdout, "first\nsecond")
    raises(e2b.NotFoundException, commands.stream_input, 999999, iter(["x"]))


@method("commands.connect")
def _():
    commands = shared.get().commands
    handle = commands.run("sleep 1; until [ -e /tmp/go-on ]; do sleep 0.1; done; echo done", background=True, timeout=0)
    handle.disconnect()
    again = commands.connect(handle.pid)
    shared.get().files.write("/tmp/go-on", "")
    equal(again.wait().stdout, "done\n")


@method("CommandHandle.send_stdin, close_stdin")
def _():
    commands = shared.get().commands
    handle = commands.run("cat", background=True, **({"stdin": True} if VERSION >= (2, 6) else {}))
    need(handle, "send_stdin", "close_stdin")
    handle.send_stdin("x\n")
    handle.close_stdin()
    equal(handle.wait().stdout, "x\n")


@method("commands.run: 2 MiB of output")
def _():
    equal(len(shared.get().commands.run("head -c 2097152 /dev/zero | tr '\\0' a").stdout), 2 << 20)


# Terminals.

def terminal(**kwargs):
    return shared.get().pty.create(size=e2b.PtySize(rows=30, cols=90), **kwargs)


def screen(handle):
    seen = b""
    try:
        for _, _, data in handle:
            seen += data or b""
    except e2b.CommandExitException:
        pass
    return seen


@method("pty.create, pty.send_stdin")
def _():
    handle = terminal(envs={"A": "b"})
    shared.get().pty.send_stdin(handle.pid, b"stty size; echo $TERM $A; exit\n")
    seen = screen(handle)
    if b"30 90" not in seen or b"xterm-256color b" not in seen:
        raise AssertionError(f"{seen!r}")


@method("pty.resize")
def _():
    handle, pty = terminal(), shared.get().pty
    pty.resize(handle.pid, e2b.PtySize(rows=11, cols=77))
    pty.send_stdin(handle.pid, b"stty size; exit\n")
    seen = screen(handle)
    if b"11 77" not in seen:
        raise AssertionError(f"{seen!r}")


@method("pty.kill")
def _():
    handle = terminal()
    equal((shared.get().pty.kill(handle.pid), shared.get().pty.kill(999999)), (True, False))


@method("pty.connect")
def _():
    pty = shared.get().pty
    need(pty, "connect")
    handle = terminal()
    handle.disconnect()
    again = pty.connect(handle.pid)
    pty.send_stdin(handle.pid, b"echo a''gain; exit\n")
    seen = screen(again)
    if b"again" not in seen:
        raise AssertionError(f"{seen!r}")


@method("pty.stream_input")
def _():
    pty = shared.get().pty
    need(pty, "stream_input")
    handle = terminal()
    pty.stream_input(handle.pid, iter([b"echo stre", b"a''med; exit\n"]))
    seen = screen(handle)
    if b"streamed" not in seen:
        raise AssertionError(f"{seen!r}")


# Files.

@method("files.write, files.read")
def _():
    files = shared.get().files
    info = files.write("hello.txt", "content")
    equal((info.name, info.path), ("hello.txt", "/home/user/hello.txt"))
    equal(files.read("hello.txt"), "content")
    equal(bytes(files.read("hello.txt", format="bytes")), b"content")
    equal(b"".join(files.read("hello.txt", format="stream")), b"content")


@method("files.read of a missing file, of a directory")
def _():
    files = shared.get().files
    raises(e2b.NotFoundException, files.read, "missing")
    raises(e2b.InvalidArgumentException, files.read, "/tmp")


@method("files.read: /proc")
def _():
    boot = shared.get().files.read("/proc/sys/kernel/random/boot_id")
    equal(len(boot.strip()), 36)


@method("files.write: bytes, streams, gzip, users, metadata")
def _():
    files = shared.get().files
    files.write("/tmp/bytes", b"\x00\xff")
    equal(bytes(files.read("/tmp/bytes", format="bytes")), b"\x00\xff")
    files.write("/tmp/stream", io.BytesIO(b"streamed"))
    equal(files.read("/tmp/stream"), "streamed")
    files.write("/root/owned", "x", user="root")
    equal(shared.get().commands.run("stat -c %U /root/owned", user="root").stdout, "root\n")


@method("files.write(gzip), files.read(gzip)")
def _():
    files = shared.get().files
    files.write("/tmp/packed", "packed" * 1000, gzip=True)
    equal(files.read("/tmp/packed", gzip=True), "packed" * 1000)


@method("files.write(metadata)")
def _():
    files = shared.get().files
    files.write("/tmp/described", "x", metadata={"kind": "test"})
    equal(files.get_info("/tmp/described").metadata, {"kind": "test"})


@method("files.write: several files")
def _():
    files = shared.get().files
    entries = [{"path": "several/a", "data": "1"}, {"path": "several/b", "data": b"2"}]
    written = files.write_files(entries) if hasattr(files, "write_files") else files.write(entries)
    equal(sorted(w.path for w in written), ["/home/user/several/a", "/home/user/several/b"])
    equal(files.read("several/b"), "2")


@method("files.list")
def _():
    files = shared.get().files
    files.write("listed/a/b", "x")
    equal([(e.name, e.type) for e in files.list("listed")], [("a", e2b.FileType.DIR if hasattr(e2b, "FileType") else e2b.sandbox.filesystem.filesystem.FileType.DIR)])
    equal([e.path for e in files.list("listed", depth=2)], ["/home/user/listed/a", "/home/user/listed/a/b"])
    raises(e2b.NotFoundException, files.list, "/missing")
    raises(e2b.InvalidArgumentException, files.list, "listed/a/b")


@method("files.list: links")
def _():
    sandbox = shared.get()
    sandbox.files.write("links/file", "x")
    sandbox.commands.run("ln -sf file links/link; ln -sf missing links/dangling")
    entries = {e.name: e for e in sandbox.files.list("links")}
    equal(sorted(entries), ["dangling", "file", "link"] if VERSION >= (2, 55) else sorted(entries))
    link = entries["link"]
    need(link, "symlink_target")
    equal(link.symlink_target, "/home/user/links/file")
    if VERSION >= (2, 55):
        equal((link.type.name, entries["dangling"].type.name), ("SYMLINK", "SYMLINK"))


@method("files.exists")
def _():
    files = shared.get().files
    equal((files.exists("hello.txt"), files.exists("missing"), files.exists("/tmp")), (True, False, True))


@method("files.get_info")
def _():
    files = shared.get().files
    files.write("info.txt", "12345")
    info = files.get_info("info.txt")
    equal((info.name, info.path, info.size, info.mode, info.permissions, info.owner, info.group),
          ("info.txt", "/home/user/info.txt", 5, 0o644, "-rw-r--r--", "user", "user"))


@method("files.make_dir")
def _():
    files = shared.get().files
    equal((files.make_dir(f"made{UNIQUE}/b"), files.make_dir(f"made{UNIQUE}/b")), (True, False))


@method("files.rename")
def _():
    files = shared.get().files
    files.write("before.txt", "moved")
    equal(files.rename("before.txt", "moved/after.txt").path, "/home/user/moved/after.txt")
    equal((files.read("moved/after.txt"), files.exists("before.txt")), ("moved", False))
    raises(e2b.NotFoundException, files.rename, "missing", "other")


@method("files.remove")
def _():
    files = shared.get().files
    files.write("removed/a", "x")
    files.remove("removed")
    equal(files.exists("removed"), False)


def events_of(watcher, until):
    seen = []

    def more():
        seen.extend((event.name, event.type.name) for event in watcher.get_new_events())
        return until(seen)
    eventually(more, "the events")
    return seen


@method("files.watch_dir")
def _():
    files = shared.get().files
    files.make_dir(f"watched{UNIQUE}")
    watcher = files.watch_dir(f"watched{UNIQUE}")
    files.write(f"watched{UNIQUE}/new", "x")
    created = events_of(watcher, lambda seen: ("new", "WRITE") in seen)
    equal(created, [("new", "CREATE"), ("new", "CHMOD"), ("new", "WRITE")])
    files.write(f"watched{UNIQUE}/new", "y")
    changed = events_of(watcher, lambda seen: seen.count(("new", "WRITE")) == 2)
    equal(changed, [("new", "CHMOD"), ("new", "WRITE"), ("new", "WRITE")])
    files.rename(f"watched{UNIQUE}/new", f"watched{UNIQUE}/renamed")
    files.remove(f"watched{UNIQUE}/renamed")
    gone = events_of(watcher, lambda seen: ("renamed", "REMOVE") in seen)
    if ("new", "RENAME") not in gone:
        raise AssertionError(f"{gone}")
    watcher.stop()
    raises(e2b.NotFoundException, files.watch_dir, "/missing")


@method("files.watch_dir(recursive)")
def _():
    files = shared.get().files
    files.make_dir(f"deep{UNIQUE}")
    watcher = files.watch_dir(f"deep{UNIQUE}", recursive=True)
    files.make_dir(f"deep{UNIQUE}/a/b")
    events_of(watcher, lambda seen: "a/b" in [name for name, _ in seen])
    files.write(f"deep{UNIQUE}/a/b/c", "x")
    events_of(watcher, lambda seen: ("a/b/c", "WRITE") in seen)
    watcher.stop()


@method("files.watch_dir(include_entry)")
def _():
    files = shared.get().files
    files.make_dir(f"entries{UNIQUE}")
    watcher = files.watch_dir(f"entries{UNIQUE}", include_entry=True)
    files.write(f"entries{UNIQUE}/a", "x")
    seen = []
    eventually(lambda: seen.extend(watcher.get_new_events()) or seen, "an event")
    equal(seen[0].entry.path, f"/home/user/entries{UNIQUE}/a")
    watcher.stop()


@method("files: a full disk")
def _():
    raise_on = getattr(e2b, "NotEnoughSpaceException", None)
    if raise_on is None:
        raise Absent("NotEnoughSpaceException")
    sandbox = shared.get()
    sandbox.commands.run("mkdir -p /tmp/full && mount -t tmpfs -o size=64k tmpfs /tmp/full", user="root")
    raises(raise_on, sandbox.files.write, "/tmp/full/a", b"x" * (1 << 20), user="root")


@method("git.init, add, commit, status")
def _():
    sandbox = shared.get()
    need(sandbox, "git")
    sandbox.git.init("repo")
    sandbox.git.configure_user("A User", "user@example.com")
    sandbox.files.write("repo/file", "x")
    sandbox.git.add("repo")
    sandbox.git.commit("repo", "a message")
    equal(sandbox.git.status("repo").is_clean, True)


# The life of a sandbox.

@method("Sandbox.pause, Sandbox.connect")
def _():
    sandbox = shared.get()
    need(sandbox, "pause")
    sandbox.commands.run("echo kept > /tmp/kept")
    handle = sandbox.commands.run("sleep 2000", background=True, timeout=0)
    handle.disconnect()
    sandbox.pause()
    equal(sandbox.is_running(), False)
    equal(sandbox.get_info().state, e2b.SandboxState.PAUSED)
    again = sandbox.pause()
    if VERSION >= (2, 45):
        equal(again, False, "a second pause")
    same = Sandbox.connect(sandbox.sandbox_id, timeout=1800)
    equal(same.commands.run("cat /tmp/kept").stdout, "kept\n")
    if handle.pid not in [p.pid for p in same.commands.list()]:
        raise AssertionError("the command is gone")
    same.commands.kill(handle.pid)


@method("Sandbox.beta_pause")
def _():
    sandbox = shared.get()
    need(sandbox, "beta_pause")
    sandbox.beta_pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=1800)
    equal(sandbox.is_running(), True)


@method("Sandbox.pause(memory: false)")
def _():
    need_version(2, 45)
    sandbox = Sandbox.create(timeout=600, envs={"A": "kept"})
    try:
        sandbox.files.write("/home/user/kept", "kept")
        boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")
        try:
            sandbox.pause(mode="filesystem")
        except TypeError:
            sandbox.pause(keep_memory=False)
        equal(sandbox.is_running(), False)
        same = Sandbox.connect(sandbox.sandbox_id, timeout=600)
        equal(same.files.read("/home/user/kept"), "kept")
        if same.files.read("/proc/sys/kernel/random/boot_id") == boot:
            raise AssertionError("it did not boot")
        equal(same.commands.run("echo $A").stdout, "kept\n")
    finally:
        sandbox.kill()


@method("Sandbox.pause(strict)")
def _():
    need_version(2, 63)
    sandbox = shared.get()
    sandbox.pause(strict=True)
    Sandbox.connect(sandbox.sandbox_id, timeout=1800)


@method("Sandbox.connect(on_resume='reboot')")
def _():
    need_version(2, 49)
    sandbox = Sandbox.create(timeout=600)
    try:
        boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")
        sandbox.pause()
        same = Sandbox.connect(sandbox.sandbox_id, timeout=600, on_resume="reboot")
        if same.files.read("/proc/sys/kernel/random/boot_id") == boot:
            raise AssertionError("it did not boot")
    finally:
        sandbox.kill()


@method("Sandbox.create(lifecycle): pause and resume by traffic")
def _():
    need_version(2, 25)
    sandbox = Sandbox.create(timeout=600, lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        equal(sandbox.get_info().lifecycle["on_timeout"], "pause")
        sandbox.set_timeout(0)
        eventually(lambda: sandbox.get_info().state == e2b.SandboxState.PAUSED, "it is paused")
        equal(sandbox.commands.run("echo awake").stdout, "awake\n")
    finally:
        sandbox.kill()


@method("Sandbox.create(lifecycle): pause of the disk at the end")
def _():
    need_version(2, 55)
    sandbox = Sandbox.create(timeout=600, lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    try:
        boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")
        sandbox.set_timeout(0)
        eventually(lambda: sandbox.get_info().state == e2b.SandboxState.PAUSED, "it is paused")
        same = Sandbox.connect(sandbox.sandbox_id, timeout=600)
        if same.files.read("/proc/sys/kernel/random/boot_id") == boot:
            raise AssertionError("it did not boot")
    finally:
        sandbox.kill()


@method("Sandbox.create_snapshot, list_snapshots, delete_snapshot")
def _():
    sandbox = shared.get()
    need(sandbox, "create_snapshot")
    sandbox.files.write("saved.txt", "in the snapshot")
    snapshot = sandbox.create_snapshot()
    equal([s.snapshot_id for s in sandbox.list_snapshots().next_items()], [snapshot.snapshot_id])
    copy = Sandbox.create(snapshot.snapshot_id, timeout=600)
    try:
        equal(copy.files.read("saved.txt"), "in the snapshot")
    finally:
        copy.kill()
    equal((Sandbox.delete_snapshot(snapshot.snapshot_id), Sandbox.delete_snapshot(snapshot.snapshot_id)), (True, False))


@method("Sandbox.create_snapshot(name)")
def _():
    sandbox = shared.get()
    need(sandbox, "create_snapshot")
    need_version(2, 31)
    snapshot = sandbox.create_snapshot(f"named-{UNIQUE}")
    try:
        equal([s.snapshot_id for s in Sandbox.list_snapshots(name=f"named-{UNIQUE}").next_items()], [snapshot.snapshot_id])
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id)


@method("Sandbox.create_snapshot(memory: false)")
def _():
    need_version(2, 55)
    sandbox = shared.get()
    sandbox.files.write("saved.txt", "on the disk")
    snapshot = sandbox.create_snapshot(mode="filesystem")
    try:
        copy = Sandbox.create(snapshot.snapshot_id, timeout=600)
        try:
            equal(copy.files.read("saved.txt"), "on the disk")
            if copy.files.read("/proc/sys/kernel/random/boot_id") == sandbox.files.read("/proc/sys/kernel/random/boot_id"):
                raise AssertionError("it did not boot")
        finally:
            copy.kill()
    finally:
        Sandbox.delete_snapshot(snapshot.snapshot_id)


@method("Sandbox.fork")
def _():
    sandbox = shared.get()
    need(sandbox, "fork")
    sandbox.files.write("forked.txt", "of the parent")
    copies = sandbox.fork(count=2, timeout=600)
    copies = [getattr(copy, "sandbox", copy) for copy in copies]
    try:
        equal(len({copy.sandbox_id for copy in copies} - {sandbox.sandbox_id}), 2)
        copies[0].files.write("forked.txt", "changed")
        equal((copies[1].files.read("forked.txt"), sandbox.files.read("forked.txt")), ("of the parent",) * 2)
    finally:
        for copy in copies:
            copy.kill()


@method("Sandbox.kill")
def _():
    sandbox = Sandbox.create(timeout=600)
    outcome = []

    def run():
        try:
            outcome.append(sandbox.commands.run("sleep 1000", timeout=0))
        except Exception as failed:
            outcome.append(failed)
    running = threading.Thread(target=run)
    running.start()
    eventually(lambda: any("sleep 1000" in " ".join([p.cmd, *p.args]) for p in sandbox.commands.list()), "the command runs")
    equal(sandbox.kill(), True)
    running.join(PATIENCE)
    reset = ("ReadError",) if VERSION < (2, 53) and "E2B_DOMAIN" not in os.environ else ()  # these know only the reset of HTTP/2
    if VERSION >= (2, 31) and not (outcome and (isinstance(outcome[0], e2b.TimeoutException) or type(outcome[0]).__name__ in reset)):
        raise AssertionError(f"the command that it cut ended with {outcome!r}")
    equal((sandbox.kill(), Sandbox.kill(sandbox.sandbox_id), sandbox.is_running()), (False, False, False))


@method("with Sandbox")
def _():
    with Sandbox.create(timeout=600) as sandbox:
        pass
    equal(sandbox.is_running(), False)


# The SDK with async and await uses other calls of the agent.

def with_async(check):
    @functools.wraps(check)
    def run():
        async def body():
            sandbox = await e2b.AsyncSandbox.connect(shared.get().sandbox_id, timeout=1800)
            await check(sandbox)
        asyncio.run(asyncio.wait_for(body(), 2 * PATIENCE))
    return run


@method("AsyncSandbox.create, kill")
def _():
    async def body():
        sandbox = await e2b.AsyncSandbox.create(timeout=60)
        equal((await sandbox.commands.run("echo a")).stdout, "a\n")
        equal(await sandbox.kill(), True)
    asyncio.run(body())


@method("AsyncSandbox: commands")
@with_async
async def _(sandbox):
    kwargs = {"stdin": True} if VERSION >= (2, 6) else {}
    handle = await sandbox.commands.run("read line; echo got $line", background=True, **kwargs)
    await sandbox.commands.send_stdin(handle.pid, "input\n")
    equal((await handle.wait()).stdout, "got input\n")


@method("AsyncSandbox: commands.stream_input")
@with_async
async def _(sandbox):
    need(sandbox.commands, "stream_input")
    handle = await sandbox.commands.run("head -c 4", background=True, stdin=True)

    async with sandbox.commands.stream_input(handle.pid) as stream:
        await stream.send("ab")
        await stream.send(b"cd")
    equal((await handle.wait()).stdout, "abcd")


@method("AsyncSandbox: pty")
@with_async
async def _(sandbox):
    seen = []
    handle = await sandbox.pty.create(size=e2b.PtySize(rows=30, cols=90), on_data=lambda data: seen.append(bytes(data)))
    await sandbox.pty.send_stdin(handle.pid, b"stty size; exit\n")
    try:
        await handle.wait()
    except e2b.CommandExitException:
        pass
    if b"30 90" not in b"".join(seen):
        raise AssertionError(f"{seen}")


@method("AsyncSandbox: files.watch_dir")
@with_async
async def _(sandbox):
    await sandbox.files.make_dir(f"async{UNIQUE}")
    seen, done = [], asyncio.Event()

    def see(event):
        seen.append((event.name, event.type.name))
        if event.type.name == "WRITE":
            done.set()
    watcher = await sandbox.files.watch_dir(f"async{UNIQUE}", on_event=see)
    await sandbox.files.write(f"async{UNIQUE}/new", "x")
    await asyncio.wait_for(done.wait(), PATIENCE)
    equal(seen, [("new", "CREATE"), ("new", "CHMOD"), ("new", "WRITE")])
    await watcher.stop()


# Templates.

def template():
    build = getattr(e2b, "Template", None)
    if build is None:
        raise Absent("Template")
    return build


NAME = f"matrix-{UNIQUE}"


class Named:
    """The template NAME, which Template.build makes, or else the first method that needs it."""
    built = False

    @classmethod
    def build(cls, **kwargs):
        Template = template()
        recipe = Template().from_template("base").set_envs({"BUILT": "yes"}).run_cmd("echo built > /home/user/built").set_workdir("/home/user")
        kwargs |= dict(cpu_count=1, memory_mb=512)
        if VERSION >= (2, 10):
            Template.build(recipe, NAME, **kwargs)
        else:
            Template.build(recipe, alias=NAME, **kwargs)
        cls.built = True

    @classmethod
    def need(cls):
        if not cls.built:
            cls.build()


@method("Template.build")
def _():
    logs = []
    Named.build(on_build_logs=lambda entry: logs.append(entry.message))
    if not logs:
        raise AssertionError("no logs")
    sandbox = Sandbox.create(NAME, timeout=600)
    try:
        equal(sandbox.commands.run("cat built; echo $BUILT; pwd").stdout, "built\nyes\n/home/user\n")
    finally:
        sandbox.kill()


@method("Template.build: a step that fails")
def _():
    Template = template()
    recipe = Template().from_template("base").run_cmd("exit 7")
    failed = raises(e2b.BuildException, Template.build, recipe, alias=f"bad-{UNIQUE}", cpu_count=1, memory_mb=512)
    if "exit status 7" not in str(failed):
        raise failed


@method("Template.build: copy")
def _():
    Template = template()
    os.makedirs("context", exist_ok=True)
    with open("context/copied.txt", "w") as file:
        file.write("copied")
    try:
        builder = Template(file_context_path=os.path.join(os.getcwd(), "context"))
    except TypeError:
        raise Absent("file_context_path")
    recipe = builder.from_template("base").copy("copied.txt", "/home/user/copied.txt")
    Template.build(recipe, alias=f"copy-{UNIQUE}", cpu_count=1, memory_mb=512)
    sandbox = Sandbox.create(f"copy-{UNIQUE}", timeout=600)
    try:
        equal(sandbox.files.read("copied.txt"), "copied")
    finally:
        sandbox.kill()


@method("Template.build_in_background, get_build_status")
def _():
    Template = template()
    need(Template, "build_in_background")
    recipe = Template().from_template("base").run_cmd("true")
    build = Template.build_in_background(recipe, alias=f"behind-{UNIQUE}", cpu_count=1, memory_mb=512)

    def ended():
        status = Template.get_build_status(build, logs_offset=0)
        state = getattr(status.status, "value", status.status)
        return state if state in ("ready", "error") else None
    equal(eventually(ended, "the build ends"), "ready")


@method("Template.exists")
def _():
    Template = template()
    exists = getattr(Template, "exists", None) or getattr(Template, "alias_exists", None)
    if exists is None:
        raise Absent("exists")
    equal((exists("base"), exists(f"missing-{UNIQUE}")), (True, False))


@method("Template.assign_tags, get_tags, remove_tags")
def _():
    Template = template()
    need(Template, "assign_tags", "remove_tags")
    Named.need()
    equal(list(Template.assign_tags(NAME, ["stable"]).tags), ["stable"])
    if hasattr(Template, "get_tags"):
        equal(sorted(tag.tag for tag in Template.get_tags(NAME)), ["default", "stable"])
    Template.remove_tags(NAME, ["stable"])


# Volumes and secrets.

class Disk:
    volume = None


@method("Volume.create, list, get_info, connect")
def _():
    if not hasattr(e2b, "Volume"):
        raise Absent("Volume")
    Disk.volume = volume = e2b.Volume.create(f"matrix-{UNIQUE}")
    equal(volume.name, f"matrix-{UNIQUE}")
    if volume.volume_id not in [v.volume_id for v in e2b.Volume.list()]:
        raise AssertionError("it is not listed")
    equal(e2b.Volume.get_info(volume.volume_id).name, volume.name)
    equal(e2b.Volume.connect(volume.volume_id).name, volume.name)


def volume():
    if Disk.volume is None:
        if not hasattr(e2b, "Volume"):
            raise Absent("Volume")
        raise AssertionError("there is no volume")
    return Disk.volume


@method("Sandbox.create(volume_mounts)")
def _():
    disk = volume()
    for content in ("first", "first\nsecond"):
        sandbox = Sandbox.create(timeout=600, volume_mounts={"/home/user/disk": disk})
        try:
            sandbox.commands.run(f"echo {content.split()[-1]} >> /home/user/disk/lines")
            equal(sandbox.files.read("/home/user/disk/lines"), content + "\n")
        finally:
            sandbox.kill()


@method("Volume: make_dir, write_file, read_file, list, get_info, update_metadata, remove")
def _():
    disk = volume()
    disk.make_dir("/a")
    disk.write_file("/a/b", "content")
    equal(disk.read_file("/a/b"), "content")
    equal([e.name for e in disk.list("/a")], ["b"])
    equal(disk.get_info("/a/b").size, 7)
    equal(disk.update_metadata("/a/b", mode=0o600).mode, 0o600)
    equal((disk.exists("/a/b"), disk.exists("/a/c")), (True, False))
    disk.remove("/a/b")
    raises(e2b.NotFoundException, disk.read_file, "/a/b")


@method("Volume.destroy")
def _():
    disk = volume()
    equal((e2b.Volume.destroy(disk.volume_id), e2b.Volume.destroy(disk.volume_id)), (True, False))


@method("Secret.create, update, get_info, exists, list, destroy")
def _():
    if not hasattr(e2b, "Secret"):
        raise Absent("Secret")
    Secret = e2b.Secret
    name = f"matrix-{UNIQUE}"
    Secret.create(name, "value", metadata={"a": "b"})
    try:
        Secret.update(name, "other")
        info = Secret.get_info(name)
        equal((info.name, dict(info.metadata)), (name, {"a": "b"}))
        equal((Secret.exists(name), Secret.exists(name + "x")), (True, False))
        if name not in [s.name for s in Secret.list().next_items()]:
            raise AssertionError("it is not listed")
    finally:
        equal((Secret.destroy(name), Secret.destroy(name)), (True, False))


@method("Sandbox.get_mcp_url")
def _():
    sandbox = shared.get()
    need(sandbox, "get_mcp_url")
    if not sandbox.get_mcp_url().startswith("https://50005-"):
        raise AssertionError(sandbox.get_mcp_url())


main(shared, sys.argv[1:])
