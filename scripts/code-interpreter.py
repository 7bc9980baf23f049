"""Runs E2B's code interpreter SDK against the server of images/templates/code-interpreter-v1 on this machine."""

import base64
import os

os.environ["E2B_DEBUG"] = "true"  # the SDK then speaks to localhost:49999
os.environ["E2B_API_KEY"] = "e2b_00"

from e2b_code_interpreter import Sandbox


def check(condition, seen):
    if not condition:
        raise SystemExit(f"unexpected: {seen!r}")


def refused(text, call):
    try:
        call()
    except Exception as err:
        check(text in str(err), err)
        return
    raise SystemExit(f"no error with {text!r}")


s = Sandbox.create()
x = s.run_code("1+1")
check(x.text == "2", x)
x = s.run_code("print('hi'); import sys; print('err', file=sys.stderr); 'str'")
check(x.logs.stdout == ["hi\n"] and x.logs.stderr == ["err\n"] and x.text == "str", x)
x = s.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()")
check(base64.b64decode(x.results[0].png).startswith(b"\x89PNG"), x)
x = s.run_code("1/0")
check(x.error.name == "ZeroDivisionError", x)
x = s.run_code("import os; os.environ['A']", envs={"A": "b"})
check(x.text == "b", x)
x = s.run_code("os.environ.get('A')")
check(x.text is None, x)
x = s.run_code("echo $((40 + 2))", language="bash")
check("".join(x.logs.stdout).strip() == "42", x)
c = s.create_code_context(cwd="/usr")  # not where kernels start
x = s.run_code("import os; os.getcwd()", context=c)
check(x.text == "/usr", x)
s.run_code("y = 5", context=c)
s.restart_code_context(c)
x = s.run_code("y", context=c)
check(x.error.name == "NameError", x)
x = s.run_code("import os; os.getcwd()", context=c)
check(x.text == "/usr", x)
check(len(s.list_code_contexts()) == 3, s.list_code_contexts())
s.remove_code_context(c)
refused("not found", lambda: s.run_code("1", context=c))
refused("no kernel for 'cobol'", lambda: s.run_code("1", language="cobol"))
refused("timed out", lambda: s.run_code("import time\nwhile True: time.sleep(.1)", timeout=2))
x = s.run_code("2+2")  # what ran for the client that left was interrupted
check(x.text == "4", x)
x = s.run_code("import os; os._exit(1)")
check(x.error.name == "UnexpectedEndOfExecution", x)
x = s.run_code("3+3")
check(x.text == "6", x)
print("the code interpreter works")
