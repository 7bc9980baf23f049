// What users of E2B's JavaScript SDK do first, against Wrenn. E2B_API_URL,
// E2B_SANDBOX_URL and E2B_API_KEY say where it is; the argument is the path of the
// SDK's package. It ends with 0 and prints "ok" when everything was as it should be.
import { pathToFileURL } from 'node:url'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import assert from 'node:assert/strict'

const require = createRequire(join(process.cwd(), 'x.js'))
const { Sandbox, CommandExitError, NotFoundError, TimeoutError } = await import(
  pathToFileURL(require.resolve(process.argv[2] ?? 'e2b')).href
).then((m) => (m.Sandbox ? m : m.default))

const sandbox = await Sandbox.create({ timeoutMs: 600_000, metadata: { 'made by': 'smoke & test' }, envs: { GREETING: 'hello' } })
let cut
try {
  assert.equal(await sandbox.isRunning(), true)
  const result = await sandbox.commands.run('echo $GREETING; echo oops >&2; whoami; pwd')
  assert.equal(result.stdout, 'hello\nuser\n/home/user\n')
  assert.equal(result.stderr, 'oops\n')
  await assert.rejects(sandbox.commands.run('exit 3'), (e) => e instanceof CommandExitError && e.exitCode === 3)
  assert.equal((await sandbox.commands.run('id -u', { user: 'root' })).stdout, '0\n')

  const background = await sandbox.commands.run('read line; echo got $line', { background: true, stdin: true })
  await sandbox.commands.sendStdin(background.pid, 'input\n')
  assert.equal((await background.wait()).stdout, 'got input\n')

  let screen = ''
  const terminal = await sandbox.pty.create({ cols: 90, rows: 30, timeoutMs: 60_000, onData: (data) => { screen += new TextDecoder().decode(data) } })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
  await terminal.wait().catch(() => {})
  assert.match(screen, /30 90/)

  await sandbox.files.write('hello.txt', 'content')
  assert.equal(await sandbox.files.read('hello.txt'), 'content')
  await sandbox.files.makeDir('a/b')
  await sandbox.files.rename('hello.txt', 'a/b/moved.txt')
  assert.deepEqual((await sandbox.files.list('a/b')).map((e) => e.name), ['moved.txt'])
  await sandbox.files.remove('a')
  await assert.rejects(sandbox.files.read('a/b/moved.txt'), NotFoundError)

  let saw
  const seen = new Promise((resolve) => { saw = resolve })
  const watcher = await sandbox.files.watchDir('/home/user', (event) => event.name === 'watched.txt' && saw())
  await sandbox.files.write('watched.txt', 'x')
  await seen
  await watcher.stop()

  await sandbox.setTimeout(1_200_000)
  assert.deepEqual((await sandbox.getInfo()).metadata, { 'made by': 'smoke & test' })
  const listed = await Sandbox.list({ query: { metadata: { 'made by': 'smoke & test' } } }).nextItems()
  assert.deepEqual(listed.map((s) => s.sandboxId), [sandbox.sandboxId])

  await sandbox.files.write('/tmp/kept', 'kept')
  await (sandbox.pause ?? sandbox.betaPause).call(sandbox)
  assert.equal(await sandbox.isRunning(), false)
  const same = await Sandbox.connect(sandbox.sandboxId)
  assert.equal(await same.files.read('/tmp/kept'), 'kept')

  // By now it has run for longer than the 5 s between two samples; the first comes within 10 s.
  const deadline = Date.now() + 120_000
  let metrics
  while ((metrics = await sandbox.getMetrics()).length === 0) {
    assert.ok(Date.now() < deadline, 'no metrics')
    await new Promise((resolve) => setTimeout(resolve, 500))
  }
  assert.ok(metrics[0].cpuCount >= 1 && metrics[0].memTotal > 0 && metrics[0].diskTotal > 0, JSON.stringify(metrics[0]))

  // A kill during a command is reported as the end of the sandbox, not as a network error.
  const command = await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  cut = command.wait().then(() => 'nothing', (e) => e)
} finally {
  assert.equal(await sandbox.kill(), true)
}
const outcome = await cut
assert.ok(outcome instanceof TimeoutError, `the command that the kill cut ended with ${outcome}`)
assert.equal(await sandbox.kill(), false)
console.log('ok')
process.exit(0)
