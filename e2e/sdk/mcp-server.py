"""A server of the Model Context Protocol on standard input and output, with one tool: it needs nothing but Python."""
import json
import os
import sys

TOOL = {"name": "add", "description": "adds two numbers", "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}}

for line in sys.stdin:
    request = json.loads(line)
    method, params = request.get("method"), request.get("params") or {}
    if method == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "add", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [TOOL]}
    elif method == "tools/call":
        given = params["arguments"]
        result = {"content": [{"type": "text", "text": f"{os.environ['GREETING']} {given['a'] + given['b']}"}]}
    elif method == "ping":
        result = {}
    else:
        if "id" in request:
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "unknown method"}}), flush=True)
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
