"""What the programs matrix*.py have in common: they register checks of methods, run them, and report on each.

A report is a line of JSON: the method's name, its outcome, the error, and how long it took. The outcomes are "pass", "fail",
"refused" when Wrenn says that it is not built, and "absent" when this version of the SDK does not have the method.
"""
import inspect
import json
import time
import traceback

PATIENCE = 120  # seconds for what a busy machine does sometime
CHECKS = []


class Absent(Exception):
    """This version of the SDK does not have the method."""


class Refused(Exception):
    """Wrenn says that it is not built."""


def method(name):
    """Registers the check of a method."""
    def enter(check):
        CHECKS.append((name, check))
        return check
    return enter


def equal(got, want, what="got"):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, want {want!r}")


def need(owner, *names):
    for name in names:
        if not hasattr(owner, name):
            raise Absent(name)


def eventually(condition, what):
    """Waits until the condition is true, and returns its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.1)
    return value


def raises(errors, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except errors as raised:
        return raised
    raise AssertionError(f"raised nothing, want {errors}")


def of_sdk(owner):
    """Reports whether a module, a class or an object is the SDK's."""
    owner = owner if inspect.ismodule(owner) or inspect.isclass(owner) else type(owner)
    return getattr(owner, "__module__", getattr(owner, "__name__", "")).split(".")[0] in ("e2b", "e2b_code_interpreter")


def outcome_of(check):
    """Runs the check, and returns its outcome and the error."""
    try:
        check()
        return "pass", ""
    except Absent as missing:
        return "absent", str(missing)
    except Refused as refused:
        return "refused", str(refused)
    except Exception as failed:
        if isinstance(failed, AttributeError) and of_sdk(failed.obj):
            return "absent", str(failed)
        if isinstance(failed, TypeError) and "unexpected keyword argument" in str(failed):
            return "absent", str(failed)
        if not isinstance(failed, (AssertionError, AttributeError, TypeError)) and ("not built" in str(failed) or "501" in str(failed)):
            return "refused", str(failed)
        return "fail", traceback.format_exc(limit=-3)


class Shared:
    """The sandbox that most methods use, made by create when it is needed."""

    def __init__(self, create):
        self.create, self.sandbox = create, None

    def get(self):
        if self.sandbox is None:
            self.sandbox = self.create()
        return self.sandbox

    def is_gone(self):
        return not self.sandbox.is_running()

    def forget_if_gone(self):
        """Makes the next call of get create another sandbox if this one has ended."""
        try:
            if self.sandbox is not None and self.is_gone():
                self.sandbox = None
        except Exception:
            self.sandbox = None

    def kill(self):
        if self.sandbox is not None:
            self.sandbox.kill()


def main(shared, wanted=()):
    """Runs the checks whose names have one of the wanted words, all if there are none. A failure does not end the program."""
    for name, check in CHECKS:
        if wanted and not any(part in name for part in wanted):
            continue
        began = time.monotonic()
        outcome, error = outcome_of(check)
        print(json.dumps({"method": name, "outcome": outcome, "error": error[-1500:], "seconds": round(time.monotonic() - began, 1)}), flush=True)
        if outcome == "fail":
            shared.forget_if_gone()
    shared.kill()
