// Calls every method of E2B's code interpreter for JavaScript against Wrenn, and reports
// on each as matrix.py does. There must be a template code-interpreter-v1, which the SDK
// starts from.
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import assert from 'node:assert/strict'

const require = createRequire(join(process.cwd(), 'x.js'))
const module = await import(pathToFileURL(require.resolve('@e2b/code-interpreter')).href)
const { Sandbox } = module.Sandbox ? module : module.default
const checks = []
const method = (name, check) => checks.push([name, check])

class Absent extends Error {}

let kept // the sandbox that all methods use
const shared = async () => (kept ??= await Sandbox.create({ timeoutMs: 1_800_000, envs: { GREETING: 'hello' } }))
const run = async (code, options) => (await shared()).runCode(code, { timeoutMs: 300_000, ...options })

method('Sandbox.create', async () => {
  assert.equal((await (await shared()).commands.run('echo $GREETING')).stdout, 'hello\n')
})
method('runCode: result, output, error', async () => {
  const ran = await run("import sys; print('out'); print('err', file=sys.stderr); 1+1")
  assert.deepEqual([ran.text, ran.logs.stdout, ran.logs.stderr, ran.error], ['2', ['out\n'], ['err\n'], undefined])
  assert.equal((await run('1/0')).error.name, 'ZeroDivisionError')
})
method('runCode: a context keeps its variables', async () => {
  await run('x = 41')
  assert.equal((await run('x + 1')).text, '42')
})
method('runCode: a plot', async () => {
  const { results } = await run('import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()')
  assert.equal(Buffer.from(results[0].png, 'base64').subarray(1, 4).toString(), 'PNG')
})
method('runCode(onStdout, onResult, onError)', async () => {
  const seen = []
  await run("print('a')", { onStdout: (o) => seen.push(o.line) })
  await run('7', { onResult: (r) => seen.push(r.text) })
  await run('boom', { onError: (e) => seen.push(e.name) })
  assert.deepEqual(seen, ['a\n', '7', 'NameError'])
})
method('runCode(envs)', async () => {
  assert.equal((await run("import os; os.environ['GREETING']")).text, 'hello')
  assert.equal((await run("os.environ['A']", { envs: { A: 'b' } })).text, 'b')
})
method('runCode(timeoutMs)', async () => {
  await assert.rejects(run('import time\nwhile True: time.sleep(.1)', { timeoutMs: 3000 }), /imeout|timed out|aborted/i)
  assert.equal((await run('2+2')).text, '4')
})
method('createCodeContext, runCode(context)', async () => {
  const context = await (await shared()).createCodeContext({ cwd: '/tmp' })
  assert.equal((await run('import os; os.getcwd()', { context })).text, '/tmp')
})
method('listCodeContexts, restartCodeContext, removeCodeContext', async () => {
  const sandbox = await shared()
  if (!sandbox.listCodeContexts) throw new Absent('listCodeContexts')
  const context = await sandbox.createCodeContext()
  await run('y = 5', { context })
  assert.ok((await sandbox.listCodeContexts()).some((c) => c.id === context.id))
  await sandbox.restartCodeContext(context)
  assert.equal((await run('y', { context })).error.name, 'NameError')
  await sandbox.removeCodeContext(context)
  assert.ok(!(await sandbox.listCodeContexts()).some((c) => c.id === context.id))
})

for (const [name, check] of checks) {
  if (process.argv.length > 2 && !process.argv.slice(2).some((part) => name.includes(part))) continue
  const began = Date.now()
  let outcome = 'pass', error = ''
  try {
    await check()
  } catch (failed) {
    outcome = failed instanceof Absent ? 'absent' : 'fail'
    error = String(failed?.stack ?? failed)
  }
  console.log(JSON.stringify({ method: name, outcome, error: error.slice(-1500), seconds: Math.round((Date.now() - began) / 100) / 10 }))
}
await kept?.kill()
process.exit(0)
