"""Calls every command of E2B's command line against Wrenn, and reports on each as harness.py says.

The argument is the program; node runs it. Terminals are pseudo terminals of this machine.
"""
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid

from harness import PATIENCE, Refused, Shared, equal, eventually, main, method

PROGRAM = ["node", sys.argv[1]]
UNIQUE = uuid.uuid4().hex[:8]
ENV = dict(os.environ, HOME=os.getcwd(), NO_UPDATE_NOTIFIER="1", NO_COLOR="1", TERM="dumb")  # the user's own configuration does not count
ID = re.compile(r"\bi[a-z0-9]{20}\b")


def e2b(*args, stdin="", code=0):
    """Runs the program, and returns its output."""
    ran = subprocess.run([*PROGRAM, *args], input=stdin, capture_output=True, text=True, env=ENV, timeout=2 * PATIENCE)
    if "not built" in ran.stderr:
        raise Refused(ran.stderr)
    if ran.returncode != code:
        raise AssertionError(f"e2b {' '.join(args)} ended with {ran.returncode}, want {code}: {ran.stdout}{ran.stderr}")
    return ran.stdout


def sandboxes(*args):
    return {s.get("sandboxId", s.get("sandboxID")): s for s in json.loads(e2b("sandbox", "list", "--format", "json", *args))}


class Named(Shared):
    """The name of the sandbox that most commands use."""

    def is_gone(self):
        return self.sandbox not in sandboxes()

    def kill(self):
        if self.sandbox is not None:
            e2b("sandbox", "kill", self.sandbox)
            self.sandbox = None


shared = Named(lambda: ID.search(e2b("sandbox", "create", "base", "--detach", "--timeout", "1800")).group())


class Terminal:
    """The program in a terminal."""

    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(PROGRAM[0], [*PROGRAM, *args], dict(ENV, TERM="xterm"))
        self.screen = ""

    def until(self, text, times=1):
        """Reads until the text is on the screen so many times, or, if it is None, to the end."""
        deadline = time.monotonic() + PATIENCE
        while text is None or self.screen.count(text) < times:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if ready and self.read():
                continue
            if ready and text is None:
                return
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"{text or 'the end'!r} is not on the screen: {self.screen!r}")

    def read(self):
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the program has ended
            return False
        self.screen += data.decode(errors="replace").replace("\r", "")
        return data

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        """Reads to the end, and returns the exit code."""
        self.until(None)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@method("sandbox create --detach")
def _():
    shared.get()


@method("sandbox list")
def _():
    found = sandboxes()[shared.get()]
    equal((found["state"], found["cpuCount"]), ("running", 1))
    if shared.get() not in e2b("sandbox", "list"):
        raise AssertionError("the table does not have it")
    equal(shared.get() in sandboxes("--state", "paused"), False)
    equal(shared.get() in sandboxes("--template", "base", "--order", "asc", "--limit", "0"), True)


@method("sandbox info")
def _():
    equal(json.loads(e2b("sandbox", "info", shared.get(), "--format", "json"))["sandboxId"], shared.get())
    if "Running" not in e2b("sandbox", "info", shared.get()).title():
        raise AssertionError("it does not show the state")
    e2b("sandbox", "info", "i" + "0" * 20, code=1)


@method("sandbox exec")
def _():
    equal(e2b("sandbox", "exec", shared.get(), "cat; whoami", stdin="input\n"), "input\nuser\n")
    equal(e2b("sandbox", "exec", "-u", "root", "-c", "/tmp", "-e", "A=b", shared.get(), "echo $(id -u) $PWD $A; exit 3", code=3), "0 /tmp b\n")


@method("sandbox exec --background")
def _():
    e2b("sandbox", "exec", "--background", shared.get(), f"sleep 1; touch /tmp/{UNIQUE}; sleep 1000")
    eventually(lambda: "yes" in e2b("sandbox", "exec", shared.get(), f"test -e /tmp/{UNIQUE} && echo yes || echo no"), "the command goes on")


@method("sandbox create: terminal")
def _():
    terminal = Terminal("sandbox", "create", "base", "--timeout", "600", "-e", "A=b")
    terminal.until("Terminal connecting")
    terminal.until("$ ")
    sandbox = ID.search(terminal.screen.split("Terminal connecting")[1]).group()
    terminal.type("echo te''rm $A; tty; whoami\r")
    terminal.until("term b\n/dev/pts/")
    terminal.until("\nuser\n")
    terminal.type("echo sta''rts; cat\r")
    terminal.until("starts\n")
    terminal.type("inp''ut\r")
    terminal.until("inp''ut\n", times=2)  # once as typed, and once by cat
    terminal.type("\x03")
    terminal.until("^C")
    terminal.type("exi''t 0\r")
    equal(terminal.end(), 0, f"exit code after {terminal.screen!r}")
    if "Closing terminal connection" not in terminal.screen:
        raise AssertionError(terminal.screen)
    e2b("sandbox", "kill", sandbox)


@method("sandbox connect: terminal")
def _():
    terminal = Terminal("sandbox", "connect", shared.get(), "-u", "root", "-c", "/tmp")
    terminal.until("# ")
    terminal.type("echo $(pwd) $(id -u)''x\r")
    terminal.until("/tmp 0x")
    terminal.type("exit\r")
    equal(terminal.end(), 0, f"exit code after {terminal.screen!r}")
    equal(sandboxes()[shared.get()]["state"], "running")


@method("sandbox metrics")
def _():
    samples = eventually(lambda: e2b("sandbox", "metrics", shared.get(), "--format", "json").strip(), "a sample")
    sample = json.loads(samples.splitlines()[0])
    sample = sample[0] if isinstance(sample, list) else sample
    if sample["cpuCount"] < 1 or sample["memTotal"] <= 0:
        raise AssertionError(samples)


@method("sandbox logs")
def _():
    if "Logs for sandbox" not in e2b("sandbox", "logs", shared.get()):
        raise AssertionError("no logs")
    e2b("sandbox", "logs", shared.get(), "--format", "json", "--level", "DEBUG")


@method("sandbox pause, resume")
def _():
    e2b("sandbox", "pause", shared.get())
    equal(shared.get() in sandboxes("--state", "paused"), True)
    e2b("sandbox", "resume", shared.get())
    equal(shared.get() in sandboxes(), True)
    e2b("sandbox", "exec", shared.get(), "true")


@method("sandbox create --lifecycle.ontimeout pause --lifecycle.autoresume")
def _():
    sandbox = ID.search(e2b("sandbox", "create", "--detach", "--lifecycle.ontimeout", "pause", "--lifecycle.autoresume", "--timeout", "600")).group()
    try:
        lifecycle = json.loads(e2b("sandbox", "info", sandbox, "--format", "json"))["lifecycle"]
        equal((lifecycle["onTimeout"], lifecycle["autoResume"]), ("pause", True))
    finally:
        e2b("sandbox", "kill", sandbox)


@method("sandbox snapshot create, list, delete")
def _():
    made = e2b("sandbox", "snapshot", "create", shared.get())
    listed = json.loads(e2b("sandbox", "snapshot", "list", "--format", "json"))
    snapshot = next(s["snapshotId"] for s in listed if s["snapshotId"] in made)
    copy = ID.search(e2b("sandbox", "create", snapshot, "--detach", "--timeout", "600")).group()
    e2b("sandbox", "kill", copy)
    e2b("sandbox", "snapshot", "delete", snapshot)


@method("template create, list, delete")
def _():
    os.makedirs("context", exist_ok=True)
    for name, text in {"e2b.Dockerfile": "FROM e2bdev/base\nCOPY copied.txt /home/user/copied.txt\nRUN cat /home/user/copied.txt > /home/user/built\n", "copied.txt": "copied\n"}.items():
        with open(f"context/{name}", "w") as file:
            file.write(text)
    name = f"matrix-cli-{UNIQUE}"
    e2b("template", "create", name, "--path", "context", "--dockerfile", "e2b.Dockerfile", "--cpu-count", "1", "--memory-mb", "512")
    if name not in e2b("template", "list", "--format", "json"):
        raise AssertionError("it is not listed")
    sandbox = ID.search(e2b("sandbox", "create", name, "--detach", "--timeout", "600")).group()
    try:
        equal(e2b("sandbox", "exec", sandbox, "cat /home/user/built"), "copied\n")
    finally:
        e2b("sandbox", "kill", sandbox)
    e2b("template", "delete", name, "--yes")


@method("sandbox kill")
def _():
    sandbox = shared.get()
    shared.kill()
    equal(sandbox in sandboxes(), False)


main(shared, sys.argv[2:])
