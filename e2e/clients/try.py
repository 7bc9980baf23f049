"""Uses a client that openapi-python-client has generated, with a running server."""

import io
import os

from generated import AuthenticatedClient
from generated.api.commands import exec_
from generated.api.files import read_file, write_file
from generated.api.sandboxes import create_sandbox, delete_sandbox, get_sandbox, list_sandboxes
from generated.api.snapshots import fork_sandbox
from generated.models import CreateSandbox, Error, Exec, Fork, Metadata, ReadFile, StartFrame, State, WriteFileBody
from generated.types import File

client = AuthenticatedClient(base_url=os.environ["WRENN_API_URL"], token=os.environ["WRENN_API_KEY"], timeout=120)


def labels(**pairs):
    metadata = Metadata()
    metadata.additional_properties = pairs
    return metadata


def ids(**query):
    return [sandbox.id for sandbox in list_sandboxes.sync(client=client, **query)]


wish = CreateSandbox(metadata=labels(who="alice"))
assert wish.to_dict() == {"metadata": {"who": "alice"}}, wish  # no defaults: a template may have other sizes
sandbox = create_sandbox.sync(client=client, body=wish)
assert sandbox.status == State.RUNNING and sandbox.timeout_sec == 300, sandbox

assert ids(metadata=["who=alice"], state=[State.RUNNING]) == [sandbox.id]
assert ids(metadata=["who=bob"]) == []
assert ids(metadata=["who=alice", "team=red"]) == []

result = exec_.sync(sandbox.id, client=client, body=Exec(cmd="sh", args=["-c", "echo $0; exit 3", "hello"]))
assert (result.stdout, result.exit_code) == ("hello\n", 3), result

# The generated form has its optional fields after the file, so the user is in the query.
path = "/tmp/wrenn-clients-" + sandbox.id
content = bytes(range(256))
form = WriteFileBody(path=path, file=File(payload=io.BytesIO(content), file_name="file"))
refused = write_file.sync(sandbox.id, client=client, body=form)
assert refused is None, refused
form = WriteFileBody(path=path, file=File(payload=io.BytesIO(content[::-1]), file_name="file"))
refused = write_file.sync(sandbox.id, client=client, body=form, user="root")
assert refused is None, refused
assert read_file.sync(sandbox.id, client=client, body=ReadFile(path=path)).payload.read() == content[::-1]

forked = fork_sandbox.sync(sandbox.id, client=client, body=Fork(count=2))
assert len(forked.sandboxes) == 2 and forked.errors == [], forked
assert sorted(ids(metadata=["who=alice"])) == sorted([sandbox.id] + [copy.id for copy in forked.sandboxes])

exec_.sync(sandbox.id, client=client, body=Exec(cmd="rm", args=[path]))
for one in [sandbox, *forked.sandboxes]:
    assert delete_sandbox.sync_detailed(one.id, client=client).status_code == 204
assert ids(state=[State.RUNNING]) == []

missing = get_sandbox.sync("i00000000000000000000", client=client)
assert isinstance(missing, Error) and missing.error.code == "not_found", missing

assert StartFrame(type_="start", cmd="ls", args=["-l"]).to_dict() == {"type": "start", "cmd": "ls", "args": ["-l"]}
