"""Calls every method of E2B's code interpreter for Python against Wrenn, and reports on each as harness.py says.

There must be a template code-interpreter-v1, which the SDK starts from.
"""
import asyncio
import base64
import sys

from e2b_code_interpreter import AsyncSandbox, Sandbox

from harness import Shared, equal, main, method, need

shared = Shared(lambda: Sandbox.create(timeout=1800, envs={"GREETING": "hello"}))


def run(code, **kwargs):
    return shared.get().run_code(code, timeout=300, **kwargs)


@method("Sandbox.create")
def _():
    equal(shared.get().commands.run("echo $GREETING").stdout, "hello\n")


@method("run_code: result, output, error")
def _():
    ran = run("import sys; print('out'); print('err', file=sys.stderr); 1+1")
    equal((ran.text, ran.logs.stdout, ran.logs.stderr, ran.error), ("2", ["out\n"], ["err\n"], None))
    failed = run("1/0").error
    equal((failed.name, failed.value), ("ZeroDivisionError", "division by zero"))


@method("run_code: a context keeps its variables")
def _():
    run("x = 41")
    equal(run("x + 1").text, "42")


@method("run_code: a plot")
def _():
    ran = run("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()")
    if not ran.results or not base64.b64decode(ran.results[0].png).startswith(b"\x89PNG"):
        raise AssertionError(f"{ran}")


@method("run_code(on_stdout, on_stderr, on_result, on_error)")
def _():
    seen = []
    run("print('a')", on_stdout=lambda line: seen.append(line.line))
    run("7", on_result=lambda result: seen.append(result.text))
    run("boom", on_error=lambda error: seen.append(error.name))
    equal(seen, ["a\n", "7", "NameError"])


@method("run_code(envs)")
def _():
    equal(run("import os; os.environ['GREETING']").text, "hello")
    equal((run("os.environ['A']", envs={"A": "b"}).text, run("os.environ.get('A')").text), ("b", None))


@method("run_code(timeout)")
def _():
    try:
        shared.get().run_code("import time\nwhile True: time.sleep(.1)", timeout=3)
    except Exception as late:
        if "imeout" not in type(late).__name__ and "timed out" not in str(late):
            raise
    else:
        raise AssertionError("it did not time out")
    equal(run("2+2").text, "4")


@method("create_code_context, run_code(context)")
def _():
    context = shared.get().create_code_context(cwd="/tmp")
    equal(run("import os; os.getcwd()", context=context).text, "/tmp")


@method("list_code_contexts, restart_code_context, remove_code_context")
def _():
    sandbox = shared.get()
    need(sandbox, "list_code_contexts")
    context = sandbox.create_code_context()
    run("y = 5", context=context)
    if context.id not in [c.id for c in sandbox.list_code_contexts()]:
        raise AssertionError("it is not listed")
    sandbox.restart_code_context(context)
    equal(run("y", context=context).error.name, "NameError")
    sandbox.remove_code_context(context)
    if context.id in [c.id for c in sandbox.list_code_contexts()]:
        raise AssertionError("it is listed after it was removed")


@method("run_code after a pause")
def _():
    run("kept = 'kept'")
    sandbox = shared.get()
    (sandbox.pause if hasattr(sandbox, "pause") else sandbox.beta_pause)()
    shared.sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=1800)
    equal(run("kept").text, "kept")


@method("AsyncSandbox.run_code")
def _():
    async def body():
        sandbox = await AsyncSandbox.connect(shared.get().sandbox_id, timeout=1800)
        equal((await sandbox.run_code("6*7", timeout=300)).text, "42")
    asyncio.run(body())


main(shared, sys.argv[1:])
