// Calls every method of E2B's JavaScript SDK against Wrenn, and reports on each as
// matrix.py does. The argument is what the names of methods must contain; default: all.
import { pathToFileURL } from 'node:url'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { randomUUID } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import assert from 'node:assert/strict'

const require = createRequire(join(process.cwd(), 'x.js'))
const entry = require.resolve('e2b')
const e2b = await import(pathToFileURL(entry).href).then((m) => (m.Sandbox ? m : m.default))
const { Sandbox, CommandExitError, NotFoundError, TimeoutError, Template } = e2b
const version = JSON.parse(readFileSync(join(process.cwd(), 'node_modules/e2b/package.json'))).version.split('.').map(Number)
const since = (...want) => {
  const at = version.findIndex((n, i) => n !== want[i])
  if (at >= 0 && at < want.length && version[at] < want[at]) throw new Absent(want.join('.'))
}
const unique = randomUUID().slice(0, 8)
const patience = 120_000
const checks = []
const method = (name, check) => checks.push([name, check])

class Absent extends Error {}

function need(owner, ...names) {
  for (const name of names) if (typeof owner?.[name] !== 'function') throw new Absent(name)
}

async function eventually(condition, what) {
  const deadline = Date.now() + patience
  for (;;) {
    const value = await condition()
    if (value) return value
    assert.ok(Date.now() < deadline, `${what}: not within ${patience} ms`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

let kept // the sandbox that most methods use
const shared = async () => (kept ??= await Sandbox.create({ timeoutMs: 1_800_000, metadata: { matrix: unique, 'a b': 'c&d' }, envs: { GREETING: 'hello' } }))
const own = async (options, use) => {
  const sandbox = await Sandbox.create({ timeoutMs: 600_000, ...options })
  try {
    return await use(sandbox)
  } finally {
    await sandbox.kill()
  }
}
const bootID = (sandbox) => sandbox.files.read('/proc/sys/kernel/random/boot_id')

// Sandboxes.

method('Sandbox.create', async () => {
  assert.equal((await (await shared()).commands.run('echo $GREETING')).stdout, 'hello\n')
})
method('Sandbox.create of a template that does not exist', async () => {
  await assert.rejects(Sandbox.create(`missing-${unique}`), /404|not found/)
})
method('Sandbox.isRunning', async () => assert.equal(await (await shared()).isRunning(), true))
method('Sandbox.getInfo', async () => {
  const sandbox = await shared()
  const info = await sandbox.getInfo()
  assert.equal(info.sandboxId, sandbox.sandboxId)
  assert.deepEqual(info.metadata, { matrix: unique, 'a b': 'c&d' })
  assert.ok(info.startedAt < info.endAt)
  assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).sandboxId, sandbox.sandboxId)
})
method('Sandbox.list', async () => {
  const sandbox = await shared()
  const found = await Sandbox.list({ query: { metadata: { matrix: unique, 'a b': 'c&d' } } }).nextItems()
  assert.deepEqual(found.map((s) => s.sandboxId), [sandbox.sandboxId])
})
method('Sandbox.list: pages', async () => {
  const first = await shared()
  await own({ metadata: { matrix: unique } }, async (second) => {
    const pages = Sandbox.list({ query: { metadata: { matrix: unique } }, limit: 1 })
    const ids = []
    while (pages.hasNext) ids.push(...(await pages.nextItems()).map((s) => s.sandboxId))
    assert.deepEqual(ids, [second.sandboxId, first.sandboxId])
  })
})
method('Sandbox.list: states', async () => {
  assert.deepEqual(await Sandbox.list({ query: { metadata: { matrix: unique }, state: ['paused'] } }).nextItems(), [])
})
method('Sandbox.setTimeout', async () => {
  const sandbox = await shared()
  const before = (await sandbox.getInfo()).endAt
  await sandbox.setTimeout(3_000_000)
  assert.ok((await sandbox.getInfo()).endAt > before)
  await Sandbox.setTimeout(sandbox.sandboxId, 1_800_000)
})
method('Sandbox.connect', async () => {
  const sandbox = await shared()
  const end = (await sandbox.getInfo()).endAt
  const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 10_000 })
  assert.equal((await same.commands.run('echo same')).stdout, 'same\n')
  assert.deepEqual((await same.getInfo()).endAt, end)
})
method('Sandbox.connect of a sandbox that does not exist', async () => {
  await assert.rejects(Sandbox.connect('i' + '0'.repeat(20)), NotFoundError)
})
method('Sandbox.getHost', async () => {
  const sandbox = await shared()
  const host = sandbox.getHost(8000)
  assert.ok(host.includes(sandbox.sandboxId))
  if (!process.env.E2B_DOMAIN) return // with one URL for all it names a host that does not exist
  await sandbox.files.write('/home/user/page/index.html', 'the page')
  await sandbox.commands.run('python3 -m http.server 8000 --bind 127.0.0.1', { background: true, cwd: '/home/user/page', timeoutMs: 0 })
  const page = await eventually(async () => {
    const answer = await fetch(`https://${host}/`)
    assert.ok(answer.ok || answer.status === 502, answer.status)
    return answer.ok && answer.text()
  }, 'the server answers')
  assert.equal(page, 'the page')
})
method('Sandbox.getMetrics', async () => {
  const sandbox = await shared()
  const [sample] = await eventually(async () => {
    const all = await sandbox.getMetrics()
    return all.length > 0 && all
  }, 'a sample')
  assert.ok(sample.cpuCount >= 1 && sample.memTotal > 0 && sample.diskTotal > 0, JSON.stringify(sample))
})
method('Sandbox.downloadUrl', async () => {
  const sandbox = await shared()
  await sandbox.files.write('signed.txt', 'signed')
  const url = await sandbox.downloadUrl('signed.txt', { useSignatureExpiration: 60_000 })
  assert.equal(await (await fetch(url)).text(), 'signed')
  assert.equal((await fetch(url.replace('signed.txt', 'other.txt'))).status, 401)
})
method('Sandbox.uploadUrl', async () => {
  const sandbox = await shared()
  const form = new FormData()
  form.append('file', new Blob(['uploaded']), 'up.txt')
  assert.equal((await fetch(await sandbox.uploadUrl('up.txt'), { method: 'POST', body: form })).status, 200)
  assert.equal(await sandbox.files.read('up.txt'), 'uploaded')
})
method('Sandbox.updateNetwork', async () => {
  const sandbox = await shared()
  need(sandbox, 'updateNetwork')
  await sandbox.updateNetwork({ denyOut: ['0.0.0.0/0'], allowOut: ['8.8.8.8'] })
  const { network } = await sandbox.getInfo()
  assert.deepEqual([network.denyOut, network.allowOut], [['0.0.0.0/0'], ['8.8.8.8']])
  await sandbox.updateNetwork({})
})
method('Sandbox.create(allowInternetAccess: false)', () => own({ allowInternetAccess: false }, async (sandbox) => {
  assert.equal((await sandbox.getInfo()).allowInternetAccess, false)
}))
method('Sandbox.create(network: private ports)', () => own({ network: { allowPublicTraffic: false } }, async (sandbox) => {
  assert.ok(sandbox.trafficAccessToken)
  assert.equal((await sandbox.getInfo()).network?.allowPublicTraffic, false)
  if (!process.env.E2B_DOMAIN) return
  assert.equal((await fetch(`https://${sandbox.getHost(8000)}/`)).status, 403)
  const headers = { 'e2b-traffic-access-token': sandbox.trafficAccessToken }
  assert.equal((await fetch(`https://${sandbox.getHost(8000)}/`, { headers })).status, 502)
}))
method('Sandbox.create(network: domains)', () => own({ network: { denyOut: ['0.0.0.0/0'], allowOut: ['example.com'] } }, async (sandbox) => {
  assert.deepEqual((await sandbox.getInfo()).network.allowOut, ['example.com'])
}))

// Commands.

method('commands.run', async () => {
  const result = await (await shared()).commands.run('echo out; echo oops >&2; whoami; pwd')
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\nuser\n/home/user\n', 'oops\n', 0])
})
method('commands.run: exit codes', async () => {
  await assert.rejects((await shared()).commands.run('exit 3'), (e) => e instanceof CommandExitError && e.exitCode === 3)
})
method('commands.run(user, cwd, envs)', async () => {
  const result = await (await shared()).commands.run('id -u; pwd; echo $A', { user: 'root', cwd: '/tmp', envs: { A: 'b' } })
  assert.equal(result.stdout, '0\n/tmp\nb\n')
})
method('commands.run: an unknown user, a missing cwd', async () => {
  const { commands } = await shared()
  await assert.rejects(commands.run('true', { user: 'nobodyhere' }), e2b.AuthenticationError)
  await assert.rejects(commands.run('true', { cwd: '/missing' }), e2b.InvalidArgumentError)
})
method('commands.run(onStdout, onStderr)', async () => {
  let out = '', err = ''
  await (await shared()).commands.run('for i in 1 2 3; do echo $i; echo e$i >&2; done', { onStdout: (s) => { out += s }, onStderr: (s) => { err += s } })
  assert.deepEqual([out, err], ['1\n2\n3\n', 'e1\ne2\ne3\n'])
})
method('commands.run(timeoutMs)', async () => {
  await assert.rejects((await shared()).commands.run('sleep 1000', { timeoutMs: 2000 }), TimeoutError)
})
method('commands.run(background), commands.list, commands.kill', async () => {
  const { commands } = await shared()
  const handle = await commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  assert.ok((await commands.list()).some((p) => p.pid === handle.pid))
  assert.equal(await handle.kill(), true)
  assert.equal(await commands.kill(handle.pid), false)
  await assert.rejects(handle.wait(), CommandExitError)
})
method('commands.sendStdin, closeStdin', async () => {
  const { commands } = await shared()
  const handle = await commands.run('cat', { background: true, stdin: true })
  await commands.sendStdin(handle.pid, 'all\n')
  await commands.closeStdin(handle.pid)
  assert.equal((await handle.wait()).stdout, 'all\n')
  await assert.rejects(commands.sendStdin(999999, 'x'), NotFoundError)
})
method('commands.connect', async () => {
  const { commands, files } = await shared()
  const handle = await commands.run('until [ -e /tmp/go-on ]; do sleep 0.1; done; echo done', { background: true, timeoutMs: 0 })
  await handle.disconnect()
  const again = await commands.connect(handle.pid)
  await files.write('/tmp/go-on', '')
  assert.equal((await again.wait()).stdout, 'done\n')
})
method('commands.run: 2 MiB of output', async () => {
  assert.equal((await (await shared()).commands.run("head -c 2097152 /dev/zero | tr '\\0' a")).stdout.length, 2 << 20)
})

// Terminals.

const terminal = async (input, use) => {
  const { pty } = await shared()
  let screen = ''
  const handle = await pty.create({ cols: 90, rows: 30, envs: { A: 'b' }, timeoutMs: 60_000, onData: (data) => { screen += new TextDecoder().decode(data) } })
  await use?.(pty, handle)
  await pty.sendInput(handle.pid, new TextEncoder().encode(input))
  await handle.wait().catch(() => {})
  return screen
}
method('pty.create, pty.sendInput', async () => {
  const screen = await terminal('stty size; echo $TERM $A; exit\n')
  assert.match(screen, /30 90/)
  assert.match(screen, /xterm-256color b/)
})
method('pty.resize', async () => {
  assert.match(await terminal('stty size; exit\n', (pty, handle) => pty.resize(handle.pid, { cols: 77, rows: 11 })), /11 77/)
})
method('pty.kill', async () => {
  const { pty } = await shared()
  const handle = await pty.create({ cols: 90, rows: 30, onData: () => {} })
  assert.deepEqual([await pty.kill(handle.pid), await pty.kill(999999)], [true, false])
})
method('pty.connect', async () => {
  const { pty } = await shared()
  need(pty, 'connect')
  const handle = await pty.create({ cols: 90, rows: 30, onData: () => {} })
  await handle.disconnect()
  let screen = ''
  const again = await pty.connect(handle.pid, { onData: (data) => { screen += new TextDecoder().decode(data) } })
  await pty.sendInput(handle.pid, new TextEncoder().encode("echo a''gain; exit\n"))
  await again.wait().catch(() => {})
  assert.match(screen, /again/)
})

// Files.

method('files.write, files.read', async () => {
  const { files } = await shared()
  assert.equal((await files.write('hello.txt', 'content')).path, '/home/user/hello.txt')
  assert.equal(await files.read('hello.txt'), 'content')
  assert.equal(Buffer.from(await files.read('hello.txt', { format: 'bytes' })).toString(), 'content')
  assert.equal(await (await files.read('hello.txt', { format: 'blob' })).text(), 'content')
  assert.equal(await new Response(await files.read('hello.txt', { format: 'stream' })).text(), 'content')
})
method('files.read of a missing file, of a directory', async () => {
  const { files } = await shared()
  await assert.rejects(files.read('missing'), NotFoundError)
  await assert.rejects(files.read('/tmp'), e2b.InvalidArgumentError)
})
method('files.read: /proc', async () => assert.equal((await bootID(await shared())).trim().length, 36))
method('files.write: blobs, streams, users, gzip, metadata', async () => {
  const { files } = await shared()
  await files.write('/tmp/blob', new Blob(['blob']))
  assert.equal(await files.read('/tmp/blob'), 'blob')
  await files.write('/tmp/stream', new Blob(['streamed']).stream())
  assert.equal(await files.read('/tmp/stream'), 'streamed')
  await files.write('/root/owned', 'x', { user: 'root' })
  await files.write('/tmp/packed', 'packed'.repeat(1000), { gzip: true })
  assert.equal(await files.read('/tmp/packed', { gzip: true }), 'packed'.repeat(1000))
  await files.write('/tmp/described', 'x', { metadata: { kind: 'test' } })
  assert.deepEqual((await files.getInfo('/tmp/described')).metadata, { kind: 'test' })
})
method('files.write: several files', async () => {
  const { files } = await shared()
  await files.write([{ path: 'several/a', data: '1' }, { path: 'several/b', data: '2' }])
  assert.equal(await files.read('several/b'), '2')
})
method('files.list', async () => {
  const { files } = await shared()
  await files.write('listed/a/b', 'x')
  assert.deepEqual((await files.list('listed')).map((e) => [e.name, e.type]), [['a', 'dir']])
  assert.deepEqual((await files.list('listed', { depth: 2 })).map((e) => e.path), ['/home/user/listed/a', '/home/user/listed/a/b'])
  await assert.rejects(files.list('/missing'), NotFoundError)
})
method('files.exists', async () => {
  const { files } = await shared()
  assert.deepEqual([await files.exists('hello.txt'), await files.exists('missing')], [true, false])
})
method('files.getInfo', async () => {
  const { files } = await shared()
  await files.write('info.txt', '12345')
  const { name, path, size, mode, permissions, owner, group } = await files.getInfo('info.txt')
  assert.deepEqual([name, path, size, mode, permissions, owner, group], ['info.txt', '/home/user/info.txt', 5, 0o644, '-rw-r--r--', 'user', 'user'])
})
method('files.makeDir', async () => {
  const { files } = await shared()
  assert.deepEqual([await files.makeDir(`made${unique}/b`), await files.makeDir(`made${unique}/b`)], [true, false])
})
method('files.rename', async () => {
  const { files } = await shared()
  await files.write('before.txt', 'moved')
  assert.equal((await files.rename('before.txt', 'moved/after.txt')).path, '/home/user/moved/after.txt')
  await assert.rejects(files.rename('missing', 'other'), NotFoundError)
})
method('files.remove', async () => {
  const { files } = await shared()
  await files.write('removed/a', 'x')
  await files.remove('removed')
  assert.equal(await files.exists('removed'), false)
})
method('files.watchDir', async () => {
  const { files } = await shared()
  const dir = `watched${unique}`
  await files.makeDir(dir)
  const seen = []
  const watcher = await files.watchDir(dir, (event) => seen.push(`${event.type} ${event.name}`))
  await files.write(`${dir}/new`, 'x')
  await eventually(() => seen.includes('write new'), 'the upload is seen')
  assert.deepEqual(seen.splice(0), ['create new', 'chmod new', 'write new'])
  await files.write(`${dir}/new`, 'y')
  await eventually(() => seen.filter((e) => e === 'write new').length === 2, 'the second upload is seen')
  assert.deepEqual(seen.splice(0), ['chmod new', 'write new', 'write new'])
  await files.remove(`${dir}/new`)
  await eventually(() => seen.includes('remove new'), 'the removal is seen')
  await watcher.stop()
})
method('files.watchDir(recursive)', async () => {
  const { files } = await shared()
  const dir = `deep${unique}`
  await files.makeDir(dir)
  const seen = []
  const watcher = await files.watchDir(dir, (event) => seen.push(`${event.type} ${event.name}`), { recursive: true })
  await files.makeDir(`${dir}/a/b`)
  await eventually(() => seen.includes('create a/b'), 'the directories are seen')
  await files.write(`${dir}/a/b/c`, 'x')
  await eventually(() => seen.includes('write a/b/c'), 'the file is seen')
  await watcher.stop()
})

// The life of a sandbox.

method('Sandbox.pause, Sandbox.connect', async () => {
  const sandbox = await shared()
  const pause = sandbox.pause ?? sandbox.betaPause
  const handle = await sandbox.commands.run('echo kept > /tmp/kept; sleep 2000', { background: true, timeoutMs: 0 })
  await handle.disconnect()
  await eventually(() => sandbox.files.exists('/tmp/kept'), 'the command runs')
  await pause.call(sandbox)
  assert.equal(await sandbox.isRunning(), false)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  assert.equal(await pause.call(sandbox), false)
  const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 1_800_000 })
  assert.equal((await same.commands.run('cat /tmp/kept')).stdout, 'kept\n')
  assert.equal(await same.commands.kill(handle.pid), true)
})
method('Sandbox.pause(memory: false)', () => own({ envs: { A: 'kept' } }, async (sandbox) => {
  const boot = await bootID(sandbox)
  await sandbox.files.write('kept', 'kept')
  await sandbox.pause({ keepMemory: false, mode: 'filesystem' })
  const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000 })
  assert.notEqual(await bootID(same), boot)
  assert.equal((await same.commands.run('cat kept; echo $A')).stdout, 'keptkept\n')
}))
method("Sandbox.connect(onResume: 'reboot')", async () => {
  since(2, 49)
  await own({}, async (sandbox) => {
    const boot = await bootID(sandbox)
    await sandbox.pause()
    assert.notEqual(await bootID(await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000, onResume: 'reboot' })), boot)
  })
})
method('Sandbox.create(lifecycle): pause and resume by traffic', () => own({ lifecycle: { onTimeout: 'pause', autoResume: true } }, async (sandbox) => {
  await sandbox.setTimeout(0)
  await eventually(async () => (await sandbox.getInfo()).state === 'paused', 'it is paused')
  assert.equal((await sandbox.commands.run('echo awake')).stdout, 'awake\n')
}))
method('Sandbox.createSnapshot, listSnapshots, deleteSnapshot', async () => {
  const sandbox = await shared()
  need(sandbox, 'createSnapshot')
  await sandbox.files.write('saved.txt', 'in the snapshot')
  const { snapshotId } = await sandbox.createSnapshot()
  assert.deepEqual((await sandbox.listSnapshots().nextItems()).map((s) => s.snapshotId), [snapshotId])
  const copy = await Sandbox.create(snapshotId, { timeoutMs: 600_000 })
  try {
    assert.equal(await copy.files.read('saved.txt'), 'in the snapshot')
  } finally {
    await copy.kill()
  }
  assert.deepEqual([await Sandbox.deleteSnapshot(snapshotId), await Sandbox.deleteSnapshot(snapshotId)], [true, false])
})
method('Sandbox.fork', async () => {
  const sandbox = await shared()
  need(sandbox, 'fork')
  await sandbox.files.write('forked.txt', 'of the parent')
  const results = await sandbox.fork({ count: 2, timeoutMs: 600_000 })
  const copies = results.map((r) => r.value ?? r.sandbox ?? r)
  try {
    await copies[0].files.write('forked.txt', 'changed')
    assert.equal(await copies[1].files.read('forked.txt'), 'of the parent')
  } finally {
    for (const copy of copies) await copy.kill()
  }
})
method('Sandbox.kill', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 600_000 })
  const command = await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  const cut = command.wait().then(() => 'nothing', (e) => e)
  assert.equal(await sandbox.kill(), true)
  assert.ok((await cut) instanceof TimeoutError, `the command that it cut ended with ${await cut}`)
  assert.deepEqual([await sandbox.kill(), await Sandbox.kill(sandbox.sandboxId), await sandbox.isRunning()], [false, false, false])
})

// Templates, volumes, secrets.

const name = `matrix-${unique}`
method('Template.build', async () => {
  if (!Template) throw new Absent('Template')
  mkdirSync('context', { recursive: true })
  writeFileSync('context/copied.txt', 'copied')
  const recipe = Template({ fileContextPath: join(process.cwd(), 'context') }).fromTemplate('base').setEnvs({ BUILT: 'yes' }).copy('copied.txt', '/home/user/copied.txt').runCmd('echo built > /home/user/built')
  let logs = 0
  await Template.build(recipe, name, { cpuCount: 1, memoryMB: 512, onBuildLogs: () => { logs++ } })
  assert.ok(logs > 0)
  const sandbox = await Sandbox.create(name, { timeoutMs: 600_000 })
  try {
    assert.equal((await sandbox.commands.run('cat built copied.txt; echo $BUILT', { cwd: '/home/user' })).stdout, 'built\ncopiedyes\n')
  } finally {
    await sandbox.kill()
  }
})
method('Template.build: a step that fails', async () => {
  if (!Template) throw new Absent('Template')
  const recipe = Template().fromTemplate('base').runCmd('exit 7')
  await assert.rejects(Template.build(recipe, `bad-${unique}`, { cpuCount: 1, memoryMB: 512 }), /exit status 7/)
})
method('Template.exists', async () => {
  need(Template, 'exists')
  assert.deepEqual([await Template.exists('base'), await Template.exists(`missing-${unique}`)], [true, false])
})
method('Template.assignTags, getTags, removeTags', async () => {
  need(Template, 'assignTags', 'removeTags')
  await Template.assignTags(name, ['stable'])
  if (Template.getTags) assert.deepEqual((await Template.getTags(name)).map((t) => t.tag).sort(), ['default', 'stable'])
  await Template.removeTags(name, ['stable'])
})
let disk
method('Volume.create, list, getInfo, connect', async () => {
  need(e2b.Volume, 'create')
  disk = await e2b.Volume.create(name)
  assert.ok((await e2b.Volume.list()).some((v) => v.volumeId === disk.volumeId))
  assert.equal((await e2b.Volume.getInfo(disk.volumeId)).name, name)
  assert.equal((await e2b.Volume.connect(disk.volumeId)).name, name)
})
method('Sandbox.create(volumeMounts)', async () => {
  need(e2b.Volume, 'create')
  for (const want of ['a\n', 'a\na\n']) {
    await own({ volumeMounts: { '/home/user/disk': disk } }, async (sandbox) => {
      await sandbox.commands.run('echo a >> /home/user/disk/lines')
      assert.equal(await sandbox.files.read('/home/user/disk/lines'), want)
    })
  }
})
method('Volume: makeDir, writeFile, readFile, list, getInfo, remove', async () => {
  need(e2b.Volume, 'create')
  await disk.makeDir('/a')
  await disk.writeFile('/a/b', 'content')
  assert.equal(await disk.readFile('/a/b'), 'content')
  assert.deepEqual((await disk.list('/a')).map((e) => e.name), ['b'])
  await disk.remove('/a/b')
})
method('Volume.destroy', async () => {
  need(e2b.Volume, 'destroy')
  assert.deepEqual([await e2b.Volume.destroy(disk.volumeId), await e2b.Volume.destroy(disk.volumeId)], [true, false])
})
method('Secret.create, update, getInfo, exists, list, destroy', async () => {
  need(e2b.Secret, 'create')
  await e2b.Secret.create(name, 'value', { metadata: { a: 'b' } })
  await e2b.Secret.update(name, 'other')
  assert.equal((await e2b.Secret.getInfo(name)).name, name)
  assert.deepEqual([await e2b.Secret.exists(name), await e2b.Secret.exists(name + 'x')], [true, false])
  assert.ok((await e2b.Secret.list().nextItems()).some((s) => s.name === name))
  assert.equal(await e2b.Secret.destroy(name), true)
})

for (const [name, check] of checks) {
  if (process.argv.length > 2 && !process.argv.slice(2).some((part) => name.includes(part))) continue
  const began = Date.now()
  let outcome = 'pass', error = ''
  try {
    await check()
  } catch (e) {
    error = String(e?.stack ?? e).slice(0, 1500)
    outcome = e instanceof Absent ? 'absent' : /not built|501/.test(error) ? 'refused' : 'fail'
    if (outcome === 'fail' && kept && !(await kept.isRunning().catch(() => false))) kept = undefined
  }
  console.log(JSON.stringify({ method: name, outcome, error, seconds: (Date.now() - began) / 1000 }))
}
await kept?.kill()
process.exit(0)
