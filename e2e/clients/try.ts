// Uses types that openapi-typescript has generated and openapi-fetch, with a running server.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./contract.js";

const client = createClient<paths>({
  baseUrl: process.env.WRENN_API_URL!,
  headers: { "X-API-Key": process.env.WRENN_API_KEY! },
});

// Fields that have a default need not be given.
const wish: components["schemas"]["CreateSandbox"] = { metadata: { who: "alice" }, network: { default: "deny" } };
const { data: sandbox, error } = await client.POST("/v1/sandboxes", { body: wish });
assert.ok(sandbox, JSON.stringify(error));
assert.equal(sandbox.status, "running");
const path = { id: sandbox.id };

async function ids(query: NonNullable<paths["/v1/sandboxes"]["get"]["parameters"]["query"]>) {
  const { data } = await client.GET("/v1/sandboxes", { params: { query } });
  return data!.map((s) => s.id).sort();
}
assert.deepEqual(await ids({ metadata: ["who=alice"], state: ["running"] }), [sandbox.id]);
assert.deepEqual(await ids({ metadata: ["who=bob"] }), []);
assert.deepEqual(await ids({ metadata: ["who=alice", "team=red"] }), []);

// A filter of another form is refused, and does not list everything.
const { response: refused } = await client.GET("/v1/sandboxes", { params: { query: { metadata: { who: "bob" } as never } } });
assert.equal(refused.status, 400);

const { data: result } = await client.POST("/v1/sandboxes/{id}/exec", {
  params: { path },
  body: { cmd: "sh", args: ["-c", "echo $0; exit 3", "hello"] },
});
assert.deepEqual([result?.stdout, result?.exit_code], ["hello\n", 3]);

// The fields of a form are sent in this order.
const name = `/tmp/wrenn-clients-${sandbox.id}`;
const { response: written } = await client.POST("/v1/sandboxes/{id}/files/write", {
  params: { path },
  body: { path: name, user: "root", file: "\u0000hello" },
  bodySerializer(body) {
    const form = new FormData();
    for (const [field, value] of Object.entries(body)) {
      form.append(field, field === "file" ? new Blob([value]) : value);
    }
    return form;
  },
});
assert.equal(written.status, 204, await written.text());
const { data: content } = await client.POST("/v1/sandboxes/{id}/files/read", { params: { path }, body: { path: name }, parseAs: "text" });
assert.equal(content, "\u0000hello");

const { data: forked } = await client.POST("/v1/sandboxes/{id}/fork", { params: { path }, body: { count: 2 } });
assert.equal(forked?.sandboxes.length, 2);
const copies = forked!.sandboxes.map((s) => s.id);
assert.deepEqual(await ids({ metadata: ["who=alice"] }), [sandbox.id, ...copies].sort());

await client.POST("/v1/sandboxes/{id}/exec", { params: { path }, body: { cmd: "rm", args: [name] } });
for (const id of [sandbox.id, ...copies]) {
  const { response } = await client.DELETE("/v1/sandboxes/{id}", { params: { path: { id } } });
  assert.equal(response.status, 204);
}
assert.deepEqual(await ids({ state: ["running"] }), []);

const { error: missing } = await client.GET("/v1/sandboxes/{id}", { params: { path: { id: "i00000000000000000000" } } });
assert.equal(missing?.error.code, "not_found");
