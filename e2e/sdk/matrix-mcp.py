"""Calls what E2B's SDK for Python has for servers of the Model Context Protocol, and reports as harness.py says.

There must be a template mcp-gateway with /srv/mcp-server.py, which mcp.sh builds.
"""
import json
import ssl
import sys
import urllib.error
import urllib.request

import e2b
from e2b import Sandbox

from harness import PATIENCE, Shared, equal, main, method, raises

SERVERS = {"add": {"command": "python3", "args": ["/srv/mcp-server.py"], "env": {"GREETING": "sum"}}}
shared = Shared(lambda: Sandbox.create(mcp=SERVERS, timeout=1800))


def ask(token, name, params, session=None, number=1):
    """Sends a request to the gateway, and returns the result and the id of the session."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if session:
        headers["Mcp-Session-Id"] = session
    body = {"jsonrpc": "2.0", "method": name, "params": params}
    if number:
        body["id"] = number
    request = urllib.request.Request(shared.get().get_mcp_url(), json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE, context=ssl.create_default_context()) as answer:
        text, session = answer.read().decode(), answer.headers.get("Mcp-Session-Id", session)
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: ":
            text = line.removeprefix("data: ")
    return json.loads(text)["result"] if number else None, session


def begin(token):
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "matrix", "version": "1"}}
    _, session = ask(token, "initialize", client)
    ask(token, "notifications/initialized", {}, session, None)
    return session


@method("Sandbox.create(mcp)")
def _():
    equal(shared.get().commands.run("stat -c %a /etc/mcp-gateway/.token", user="root").stdout, "600\n")


@method("get_mcp_token")
def _():
    sandbox = shared.get()
    token = sandbox.get_mcp_token()
    equal(Sandbox.connect(sandbox.sandbox_id).get_mcp_token(), token)


@method("get_mcp_url: tools/list, tools/call")
def _():
    token = shared.get().get_mcp_token()
    session = begin(token)
    tools, _ = ask(token, "tools/list", {}, session, 2)
    equal([tool["name"] for tool in tools["tools"]], ["add"])
    called, _ = ask(token, "tools/call", {"name": "add", "arguments": {"a": 40, "b": 2}}, session, 3)
    equal(called["content"][0]["text"], "sum 42")


@method("get_mcp_url: another token")
def _():
    refused = raises(urllib.error.HTTPError, ask, "other", "tools/list", {})
    equal(refused.code, 401)


@method("Sandbox.create(mcp) of a server that does not exist")
def _():
    failed = raises(e2b.SandboxException, Sandbox.create, mcp={"nothing": {}})
    if "Failed to start MCP gateway" not in str(failed) or "not in the catalog" not in str(failed):
        raise AssertionError(str(failed))


@method("Sandbox.create(mcp) of a template without the gateway")
def _():
    failed = raises(e2b.SandboxException, Sandbox.create, "base", mcp=SERVERS)
    if "Failed to start MCP gateway" not in str(failed):
        raise AssertionError(str(failed))


main(shared, sys.argv[1:])
