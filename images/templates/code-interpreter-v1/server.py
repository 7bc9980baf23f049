"""The server of the template code-interpreter-v1: runs code in Jupyter kernels.

It answers the clients of E2B's code interpreter on port 49999, by HTTP with lines
of JSON. The sandbox's gateway decides who reaches the port.
"""

import asyncio
import json
import os
import signal
import uuid

import tornado.httpclient
import tornado.httpserver
import tornado.web
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

ADDRESS = os.environ.get("CODE_INTERPRETER_ADDRESS", "0.0.0.0")
PORT = int(os.environ.get("CODE_INTERPRETER_PORT", "49999"))
WORKDIR = os.environ.get("CODE_INTERPRETER_WORKDIR", "/home/user")
# The sandbox's agent, which knows the variables that the sandbox was created with.
ENVS = os.environ.get("CODE_INTERPRETER_ENVS", "http://127.0.0.1:49983/envs")

MAX_BODY = 16 << 20  # bytes of a request
MAX_CONTEXTS = 50
KEEPALIVE = 5.0  # seconds of silence
START_TIMEOUT = 600.0  # seconds, of a kernel; one that ends is noticed at once

NAMES = {"js": "javascript", "ts": "typescript", "py": "python", "python3": "python", "sh": "bash"}

# The fields of a result, by the type of what a kernel shows.
FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "text/latex": "latex",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "application/json": "json",
    "application/javascript": "javascript",
}


class Refused(Exception):
    """A request that is answered by a status and a text."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def normalize(language):
    """Returns the name of a language as contexts have it."""
    language = (language or "python").strip().lower()
    return NAMES.get(language, language)


def find_kernel(language):
    """Returns the name of the kernel for a language."""
    specs = KernelSpecManager().get_all_specs()
    for name, found in sorted(specs.items()):
        if normalize(found["spec"].get("language")) == language:
            return name
    known = sorted({normalize(found["spec"].get("language")) for found in specs.values()})
    raise Refused(400, f"no kernel for {language!r} is installed in this template; there are: {', '.join(known)}")


def python_env(new, gone):
    return f"__import__('os').environ.update({new!r})\nfor _ in {gone!r}: __import__('os').environ.pop(_, None)"


def quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


def bash_env(new, gone):
    lines = [f"export {name}={quote(value)}" for name, value in new.items() if name.isidentifier()]
    lines += [f"unset {name}" for name in gone if name.isidentifier()]
    return "\n".join(lines)


# How a kernel is told variables. Others do not get any.
SET_ENV = {"python": python_env, "bash": bash_env}


class Kernel:
    """A kernel that runs, and the connection to it."""

    def __init__(self, name):
        self.manager = AsyncKernelManager(kernel_name=name)
        self.client = None

    @classmethod
    async def start(cls, language, cwd):
        kernel = cls(find_kernel(language))
        try:
            await kernel.manager.start_kernel(cwd=cwd)
            kernel.client = kernel.manager.client()
            kernel.client.start_channels()
            await kernel.client.wait_for_ready(timeout=START_TIMEOUT)
        except BaseException:
            await kernel.stop()
            raise
        return kernel

    async def stop(self):
        if self.client:
            self.client.stop_channels()
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=True)


class Spare:
    """A Python kernel that waits for the next context: a slow machine takes longer to start one than clients wait."""

    def __init__(self):
        self.starting = None

    def prepare(self):
        self.starting = asyncio.ensure_future(Kernel.start("python", WORKDIR))

    async def take(self):
        """Returns a kernel in WORKDIR, and starts the next one."""
        starting = self.starting
        self.prepare()
        if starting:
            try:
                kernel = await starting
                if await kernel.manager.is_alive():
                    return kernel
                await kernel.stop()
            except (OSError, RuntimeError):  # it could not start; the next attempt may
                pass
        return await Kernel.start("python", WORKDIR)

    async def stop(self):
        if self.starting:
            self.starting.cancel()
            outcome = (await asyncio.gather(self.starting, return_exceptions=True))[0]
            if isinstance(outcome, Kernel):
                await outcome.stop()


class Context:
    """A kernel, in which one piece of code runs at a time."""

    def __init__(self, language, cwd, spare):
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.spare = spare
        self.lock = asyncio.Lock()
        self.env = {}  # that the kernel was told
        self.kernel = None

    def describe(self):
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    async def start(self):
        """Gives the context a new kernel."""
        self.env = {}
        if self.language != "python":
            self.kernel = await Kernel.start(self.language, self.cwd)
            return
        self.kernel = await self.spare.take()
        if self.cwd != WORKDIR:
            await self.tell(f"__import__('os').chdir({self.cwd!r})")

    async def restart(self):
        await self.interrupt()
        async with self.lock:
            await self.replace()

    async def replace(self):
        """Ends the kernel and starts another one. The caller holds the lock."""
        await self.kernel.stop()
        await self.start()

    async def interrupt(self):
        await self.kernel.manager.interrupt_kernel()

    async def stop(self):
        await self.kernel.stop()

    async def tell(self, code):
        """Runs code of which no client sees anything."""
        async for _ in self.messages(code, silent=True):
            pass

    async def set_env(self, new, gone=()):
        tell = SET_ENV.get(self.language)
        if tell and (new or gone):
            await self.tell(tell(new, list(gone)))

    async def messages(self, code, silent=False):
        """Runs code and yields the kernel's messages about it, None for a silence."""
        request = self.kernel.client.execute(code, silent=silent, store_history=not silent, allow_stdin=False)
        while True:
            try:
                message = await self.kernel.client.get_iopub_msg(timeout=KEEPALIVE)
            except Exception as err:  # queue.Empty
                if not await self.kernel.manager.is_alive():
                    raise Refused(500, "the kernel has ended") from err
                yield None
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
            yield message


def result(message):
    """Returns a display or a result as clients know it."""
    out = {"type": "result", "is_main_result": message["msg_type"] == "execute_result"}
    extra = {}
    for kind, value in message["content"]["data"].items():
        if kind in FIELDS:
            out[FIELDS[kind]] = value
        else:
            extra[kind] = value
    text = out.get("text")
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] == "'":
        out["text"] = text[1:-1]  # a string is shown as itself
    if extra:
        out["extra"] = extra
    return out


def translate(message):
    """Returns a kernel's message as clients know it, None for one that they do not."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        at = message["header"]["date"]
        return {"type": content["name"], "text": content["text"], "timestamp": at.isoformat() if hasattr(at, "isoformat") else str(at)}
    if kind in ("display_data", "execute_result"):
        return result(message)
    if kind == "error":
        return {"type": "error", "name": content["ename"], "value": content["evalue"], "traceback": "\n".join(content["traceback"])}
    if kind == "execute_input":
        return {"type": "number_of_executions", "execution_count": content["execution_count"]}
    return None


class Contexts:
    """All contexts. The first of a language is its default."""

    def __init__(self):
        self.spare = Spare()
        self.all = {}
        self.defaults = {}
        self.lock = asyncio.Lock()

    async def create(self, language, cwd):
        if len(self.all) >= MAX_CONTEXTS:
            raise Refused(429, f"there are {MAX_CONTEXTS} contexts, the most that are possible: remove one")
        if not os.path.isdir(cwd):
            raise Refused(400, f"there is no directory {cwd!r}")
        context = Context(language, cwd, self.spare)
        await context.start()
        self.all[context.id] = context
        return context

    async def default(self, language):
        async with self.lock:
            context = self.all.get(self.defaults.get(language))
            if context is None:
                context = await self.create(language, WORKDIR)
                self.defaults[language] = context.id
            return context

    def find(self, name):
        if name not in self.all:
            raise Refused(404, f"Context {name} not found")
        return self.all[name]

    async def remove(self, name):
        context = self.find(name)
        del self.all[name]
        await context.stop()


async def sandbox_env(token):
    """Returns the variables of the sandbox, {} if the agent does not tell."""
    headers = {"X-Access-Token": token} if token else {}
    try:
        answer = await tornado.httpclient.AsyncHTTPClient().fetch(ENVS, headers=headers, request_timeout=5)
        return {str(name): str(value) for name, value in json.loads(answer.body).items()}
    except (OSError, ValueError, AttributeError, tornado.httpclient.HTTPError):
        return {}


class Handler(tornado.web.RequestHandler):
    def initialize(self, contexts):
        self.contexts = contexts

    def body(self):
        try:
            fields = json.loads(self.request.body or b"{}")
        except ValueError as err:
            raise Refused(400, f"the body is not JSON: {err}") from err
        if not isinstance(fields, dict):
            raise Refused(400, "the body is an object")
        return fields

    def text(self, fields, name, default=None):
        value = fields.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise Refused(400, f"{name} is a text")
        return value

    def write_error(self, status_code, exc_info=None, **_):
        error = exc_info[1] if exc_info else None
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if isinstance(error, Refused):
            self.set_status(error.status)
            self.finish(str(error))
            return
        self.finish(str(error) if status_code != 500 else "Internal Server Error")

    def log_exception(self, typ, value, tb):
        if not isinstance(value, Refused):
            super().log_exception(typ, value, tb)


class Health(Handler):
    def get(self):
        self.finish("OK")


class List(Handler):
    def get(self):
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps([context.describe() for context in self.contexts.all.values()]))

    async def post(self):
        fields = self.body()
        context = await self.contexts.create(normalize(self.text(fields, "language")), self.text(fields, "cwd", WORKDIR))
        self.finish(context.describe())


class One(Handler):
    async def delete(self, name):
        await self.contexts.remove(name)
        self.set_status(204)


class Restart(Handler):
    async def post(self, name):
        await self.contexts.find(name).restart()
        self.set_status(204)


class Execute(Handler):
    task = None

    async def post(self):
        fields = self.body()
        code, env = self.text(fields, "code"), fields.get("env_vars") or {}
        name, language = self.text(fields, "context_id"), self.text(fields, "language")
        if code is None:
            raise Refused(400, "code is missing")
        if name and language:
            raise Refused(400, "Only one of context_id or language can be provided")
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            raise Refused(400, "env_vars is an object of texts")
        context = self.contexts.find(name) if name else await self.contexts.default(normalize(language))
        self.set_header("Content-Type", "application/x-ndjson")
        self.context = context
        self.task = asyncio.current_task()
        running = asyncio.ensure_future(self.run_in(context, code, env))
        self.running = running
        await asyncio.shield(running)

    async def run_in(self, context, code, env):
        async with context.lock:
            if self.gone:
                return
            self.has_lock = True
            shared = await sandbox_env(self.request.headers.get("X-Access-Token"))
            if shared != context.env:
                await context.set_env(shared, set(context.env) - set(shared))
                context.env = shared
            await context.set_env(env)
            try:
                async for message in context.messages(code):
                    self.send({"type": "keepalive"} if message is None else translate(message))
            except Refused as err:
                self.send({"type": "error", "name": "UnexpectedEndOfExecution", "value": str(err), "traceback": ""})
                await context.replace()
            else:
                await context.set_env({name: context.env[name] for name in env if name in context.env}, [name for name in env if name not in context.env])
            self.has_lock = False
        self.send({"type": "end_of_execution"})

    gone = False
    has_lock = False

    def send(self, message):
        if message is not None and not self.gone:
            self.write(json.dumps(message) + "\n")
            self.flush()

    def on_connection_close(self):
        """The client is gone: what runs for it ends."""
        self.gone = True
        if self.has_lock:
            self.interrupting = asyncio.ensure_future(self.context.interrupt())


async def main():
    contexts = Contexts()
    app = tornado.web.Application(
        [
            ("/health", Health, {"contexts": contexts}),
            ("/contexts", List, {"contexts": contexts}),
            ("/contexts/([^/]+)", One, {"contexts": contexts}),
            ("/contexts/([^/]+)/restart", Restart, {"contexts": contexts}),
            ("/execute", Execute, {"contexts": contexts}),
        ],
        log_function=lambda handler: None,
    )
    await contexts.default("python")  # ready before the template is saved, as the spare kernel
    await contexts.spare.starting
    server = tornado.httpserver.HTTPServer(app, max_body_size=MAX_BODY)
    server.listen(PORT, ADDRESS)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.stop()
    for context in list(contexts.all.values()):
        await context.stop()
    await contexts.spare.stop()


if __name__ == "__main__":
    asyncio.run(main())
