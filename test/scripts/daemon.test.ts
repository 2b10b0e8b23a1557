/** Life as a daemon, through the real commands. */
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { asFd, type Fd, makePipe, setBlocking } from '../../lib/kernel/fd.ts'
import { write } from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { listenUnix } from '../../lib/kernel/unix.ts'
import { within } from '../expect.ts'
import { startCache, startProxy } from '../support/daemons.ts'
import { dumpAll, fakeDump, fakeRestore, readToEnd } from '../support/fake-criu.ts'
import { notifySocket } from '../support/notify.ts'
import { eventually, type Ran, type RunOptions, root, run, shell, start, statusIs, temporary } from '../support/run.ts'
import { socketPair } from '../support/sockets.ts'
import { pattern } from '../support/talk.ts'

interface Context {
  folder: string
  /** Where the sockets are. */
  source: string
  target: string
  remove: () => void
}

const test = suite<Context>('scripts/daemon')
/** Detached daemons of the test that runs, to be ended whatever happens. */
const started: number[] = []

test.before.each((context) => {
  const { path, remove } = temporary()
  Object.assign(context, { folder: path, source: join(path, 'source'), target: join(path, 'target'), remove })
})
test.after.each(({ remove }) => {
  for (const pid of started.splice(0)) if (runs(pid)) process.kill(pid, 'SIGKILL')
  remove()
})

function runs(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

const text = (path: string): string => readFileSync(path, 'utf8')
const capture = (source: string): string => join(source, 'streamer-capture.sock')
const serving = (target: string): string => join(target, 'streamer-serve.sock')
const cachePort = (said: string): string => /listening on 127\.0\.0\.1:(\d+)/.exec(said)?.[1] ?? ''

interface Detached {
  pid: number
  ran: Ran
  stop(signal?: NodeJS.Signals): Promise<void>
}

/** Runs a daemon with -d and a pidfile; it must say that it is ready. */
async function detached(command: string, args: string[], pidfile: string, options: RunOptions = {}): Promise<Detached> {
  const ran = await run(command, [...args, '-d', '--pidfile', pidfile], options)
  assert.is(ran.code, 0, ran.stderr)
  const pid = Number(text(pidfile))
  started.push(pid)
  return {
    pid,
    ran,
    async stop(signal = 'SIGTERM') {
      process.kill(pid, signal)
      await eventually(() => !runs(pid) || undefined, `the end of ${command}`, 10_000)
    },
  }
}

test('-d: ready when it returns; own session; descriptors on /dev/null or the log; all gone after SIGTERM', async ({
  folder,
  source,
  target,
}) => {
  const log = join(folder, 'log')
  writeFileSync(log, 'older\n')
  const cache = await detached('cache', ['--port', '0', '-D', target], join(folder, 'cache.pid'))
  assert.ok(existsSync(serving(target)))
  const port = cachePort(cache.ran.stderr)
  const proxy = await detached('proxy', ['--port', port, '-D', source, '-o', log], join(folder, 'proxy.pid'))
  assert.match(proxy.ran.stderr, /^proxy: listening on .*streamer-capture.sock\n$/)
  for (const [{ pid }, out] of [
    [cache, '/dev/null'],
    [proxy, log],
  ] as const) {
    assert.is(readlinkSync(`/proc/${pid}/fd/0`), '/dev/null')
    assert.is(readlinkSync(`/proc/${pid}/fd/1`), out)
    assert.is(readlinkSync(`/proc/${pid}/fd/2`), out)
    const [, , , session, terminal] = text(`/proc/${pid}/stat`)
      .replace(/^.*\) /, '')
      .split(' ')
    assert.is(Number(session), pid, 'its own session')
    assert.is(terminal, '0', 'no terminal')
  }
  await dumpAll(fakeDump(capture(source)), { 'name.img': Buffer.from('carried') })
  const criu = fakeRestore(serving(target))
  assert.is((await criu.image('name.img'))?.toString(), 'carried')
  criu.close()
  await eventually(() => text(log).includes('sealed by the cache') || undefined, 'the log')
  await Promise.all([cache.stop(), proxy.stop()])
  const lines = text(log).trimEnd().split('\n')
  assert.is(lines.shift(), 'older')
  for (const line of lines) assert.match(line, /^2\d{3}-\d\d-\d\dT[\d:.]+Z proxy: /)
  assert.match(lines.at(-1) ?? '', /proxy: stopped by SIGTERM$/)
  assert.equal(readdirSync(folder).sort(), ['log', 'source', 'target'], 'no pidfile is left')
  assert.equal([...readdirSync(source), ...readdirSync(target)], [], 'no socket is left')
})

test("-d: the daemon's own error, hint and exit code, and nothing left behind", async ({ folder, source, target }) => {
  const taken = net.createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => taken.once('listening', resolve))
  const { port } = taken.address() as net.AddressInfo
  writeFileSync(join(folder, 'file'), '')
  const files = ['--pidfile', join(folder, 'pid'), '-o', join(folder, 'log')]
  for (const [code, command, ...args] of [
    [3, 'cache', '--port', String(port), '-D', target],
    [1, 'cache', '--port', '0', '-D', '/proc/nowhere'],
    [2, 'cache', '-D', target],
    [1, 'proxy', '--port', '9', '-D', join(folder, 'file')],
    [2, 'proxy', '--port', '9', '-D', source, '--timeout', 'soon'],
  ] as const) {
    const here = await run(command, args)
    const away = await run(command, [...args, '-d', ...files])
    const line = [command, ...args].join(' ')
    assert.is(away.code, code, line)
    assert.is(here.code, code, line)
    assert.is(away.stderr, here.stderr, line)
    assert.match(away.stderr, /^(cache|proxy): error: /)
    assert.match(text(join(folder, 'log')), /error: /, 'the log has it too')
    assert.not(existsSync(join(folder, 'pid')), line)
    assert.equal(
      [source, target].filter(existsSync).flatMap((path) => readdirSync(path)),
      [],
      line,
    )
  }
  taken.close()
})

test('-d: a starter that is stopped leaves no daemon', async ({ folder, target }) => {
  const pidfile = join(folder, 'pid')
  for (const ms of [250, 400, 500, 600, 700]) {
    const starter = start('cache', ['--port', '0', '-D', target, '-d', '--pidfile', pidfile])
    await new Promise((resolve) => setTimeout(resolve, ms))
    const { code, signal } = await starter.stop()
    if (code === 0) {
      const pid = Number(text(pidfile))
      assert.ok(runs(pid))
      process.kill(pid, 'SIGTERM')
      await eventually(() => !runs(pid) || undefined, 'its end')
    } else assert.ok(code === 143 || signal === 'SIGTERM', `${code} ${signal}`)
    assert.not(existsSync(pidfile))
    assert.not(existsSync(serving(target)))
  }
})

test("-d: the daemon keeps no descriptors of its starter's", async ({ folder, target }) => {
  const line = `exec cache --port 0 -D ${target} -d --pidfile ${folder}/pid 9>${folder}/nine 200>${folder}/lock`
  assert.is((await run('bash', ['-c', line])).code, 0)
  const pid = Number(text(join(folder, 'pid')))
  started.push(pid)
  const open = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))
  assert.equal(
    open.filter((path) => path.startsWith(folder)),
    [],
  )
})

test('--pidfile: that of a live process is refused and nothing is touched; a stale one is replaced', async ({
  folder,
  target,
}) => {
  const pidfile = join(folder, 'pid')
  const args = ['--port', '0', '-D', target, '--pidfile', pidfile]
  const first = start('cache', args)
  await first.says(/streamer-serve/)
  assert.is(text(pidfile), `${first.child.pid}\n`)
  for (const more of [[], ['-d']]) {
    const second = await run('cache', [...args.with(3, `${target}-2`), ...more])
    assert.is(second.code, 1)
    assert.match(second.stderr, /^cache: error: process \d+ runs and holds the pidfile .*\ncache: hint: .*\n$/)
    assert.not(existsSync(`${target}-2`))
  }
  await first.stop('SIGKILL')
  assert.ok(existsSync(pidfile))
  const third = start('cache', args)
  await third.says(/streamer-serve/)
  assert.is(text(pidfile), `${third.child.pid}\n`)
  await third.stop()
  assert.equal(readdirSync(folder), ['target'])
})

for (const more of [[], ['-d']]) {
  test(`--status-fd ${more}: one zero byte when the sockets are there, then the end`, async ({ folder, target }) => {
    const pidfile = join(folder, 'pid')
    for (const args of [
      ['proxy', '--port', '9'],
      ['cache', '--port', '0'],
    ] as const) {
      const [out, into] = makePipe()
      const [command, ...rest] = args
      const options = ['-D', target, '--status-fd', '3', '--pidfile', pidfile, ...more]
      const daemon = start(command, [...rest, ...options], { fds: [into] })
      closeFd(into)
      assert.equal(await within(readToEnd(out)), Buffer.of(0), command)
      closeFd(out)
      const name = command === 'proxy' ? 'streamer-capture.sock' : 'streamer-serve.sock'
      assert.ok(readdirSync(target).includes(name), 'the socket is there')
      const pid = Number(text(pidfile))
      started.push(pid)
      assert.is(existsSync(`/proc/${pid}/fd/3`) && readlinkSync(`/proc/${pid}/fd/3`).startsWith('pipe'), false)
      process.kill(pid, 'SIGTERM')
      assert.is((await daemon.ended).code, more.length === 0 ? 143 : 0)
      await eventually(() => !runs(pid) || undefined, 'its end')
    }
  })
}

test('--status-fd: a pipe that is full and not read holds nobody up', async ({ folder, target }) => {
  for (const [at, more] of [[], ['-d']].entries()) {
    const [out, into] = makePipe()
    while (write(into, Buffer.alloc(4096), 4096) > 0);
    // As a shell has it: a write would wait.
    setBlocking(into)
    const pidfile = join(folder, 'pid')
    const options = ['--port', '0', '-D', `${target}-${at}`, '--status-fd', '3', '--pidfile', pidfile, ...more]
    const cache = start('cache', options, { fds: [into] })
    await within(cache.says(/streamer-serve/))
    const pid = await eventually(() => (existsSync(pidfile) ? Number(text(pidfile)) : undefined), 'the pidfile')
    started.push(pid)
    if (more.length > 0) assert.is((await within(cache.ended)).code, 0)
    process.kill(pid, 'SIGTERM')
    await eventually(() => !runs(pid) || undefined, 'the end of the cache', 10_000)
    closeFd(into)
    closeFd(out)
  }
})

test('--status-fd: nobody gets a byte when the daemon cannot start', async () => {
  for (const more of [[], ['-d']]) {
    const [out, into] = makePipe()
    const daemon = start('proxy', ['--port', '9', '-D', '/proc/nowhere', '--status-fd', '3', ...more], { fds: [into] })
    closeFd(into)
    assert.is((await within(readToEnd(out))).length, 0)
    closeFd(out)
    assert.is((await daemon.ended).code, 1)
  }
})

test('-o and -W: messages go to the log and not to stderr, but for the last; names are relative to -W', async ({
  folder,
  source,
}) => {
  const proxy = start('proxy', ['--port', '9', '-D', source, '-W', folder, '-o', 'log', '--pidfile', 'pid'])
  const log = join(folder, 'log')
  await eventually(() => (existsSync(log) && text(log).includes('streamer-capture')) || undefined, 'the log')
  assert.is(statSync(log).mode & 0o777, 0o600)
  assert.is(text(join(folder, 'pid')), `${proxy.child.pid}\n`)
  const ran = await proxy.stop('SIGINT')
  assert.is(ran.code, 130)
  assert.is(ran.stderr, 'proxy: stopped by SIGINT\n')
  assert.match(text(log), /Z proxy: stopped by SIGINT\n$/)
  assert.equal(readdirSync(folder).sort(), ['log', 'source'])
})

/** Two ends to hand over, and the daemons that have them; with -d if `more` says so. */
async function overSocket(context: Context, more: string[]) {
  const { folder, source, target } = context
  const [one, two] = await socketPair(folder)
  const pair = (name: string): string[] => ['-o', join(folder, `${name}.log`), '--pidfile', join(folder, name), ...more]
  const cache = start('cache', ['--ps-socket', '3', '-D', target, ...pair('cache')], { fds: [one] })
  const proxy = start('proxy', ['--ps-socket', '3', '-D', source, ...pair('proxy')], { fds: [two] })
  closeFd(one)
  closeFd(two)
  await eventually(() => (existsSync(capture(source)) && existsSync(serving(target))) || undefined, 'both sockets')
  const says = (name: string, what: RegExp) =>
    eventually(() => what.exec(text(join(folder, `${name}.log`))) ?? undefined, `${name}: ${what}`)
  const pids = ['cache', 'proxy'].map((name) => Number(text(join(folder, name))))
  started.push(...pids)
  return { cache, proxy, pids, says }
}

for (const more of [[], ['-d']]) {
  test(`--ps-socket ${more}: one snapshot goes through the socket that was handed over; no port`, async (context) => {
    const { source, target } = context
    const { pids, says } = await overSocket(context, more)
    await dumpAll(fakeDump(capture(source)), { 'pages-1.img': pattern(3_000_000, 1) })
    await says('proxy', /sent and sealed by the cache: 2 images/)
    await says('cache', /sealed: 2 images/)
    assert.not.match(text(join(context.folder, 'cache.log')), /127\.0\.0\.1/, 'the cache has no port')
    const criu = fakeRestore(serving(target))
    assert.ok((await criu.image('pages-1.img'))?.equals(pattern(3_000_000, 1)))
    criu.close()
    const second = fakeDump(capture(source))
    const pipe = second.open('pages-1.img')
    await says('proxy', /failed: the socket fd:3 is used up: it carries one snapshot\n.*hint: start another proxy/)
    assert.instance(await writeAll(pipe, pattern(10_000_000)).catch((reason: Error) => reason), Error)
    closeFd(pipe)
    second.close()
    for (const pid of pids) process.kill(pid, 'SIGTERM')
    for (const pid of pids) await eventually(() => !runs(pid) || undefined, 'the end')
  })
}

test('--ps-socket: the first connection of a cache that has a port as well', async ({ folder, source, target }) => {
  const [one, two] = await socketPair(folder)
  const cache = start('cache', ['--port', '0', '--ps-socket', '3', '-D', target], { fds: [one] })
  const proxy = start('proxy', ['--ps-socket', '3', '-D', source], { fds: [two] })
  closeFd(one)
  closeFd(two)
  const [, port = ''] = await cache.says(/127\.0\.0\.1:(\d+)/)
  await proxy.says(/streamer-capture/)
  await dumpAll(fakeDump(capture(source)), {})
  await cache.says(/sealed: 1 images/)
  const other = await startProxy(`${source}-2`, port)
  await dumpAll(fakeDump(capture(`${source}-2`)), {})
  await cache.says(/sealed: 1 images[\s\S]*sealed: 1 images/)
  await Promise.all([proxy.stop(), cache.stop(), other.stop()])
})

test('descriptors that cannot be used: exit 2, a hint, nothing made', async ({ folder, source }) => {
  const file = openSync('/dev/null', 'r')
  const listener = listenUnix(join(folder, 'l'))
  const [local, open] = [await tcpListener(), await tcpListener('0.0.0.0')]
  const fds = [file, listener, local.fd, open.fd]
  const onLink = (env: string): string[] => ['bash', '-c', `${env} exec cache -D ${source} "$@"`, 'cache']
  for (const [message, command, ...args] of [
    [/--ps-socket: fd 9 is not open/, 'proxy', '--ps-socket', '9'],
    [/--ps-socket: fd 9 is not open/, 'cache', '--ps-socket', '9'],
    [/--ps-socket wants a number/, 'proxy', '--ps-socket', '1x'],
    [/fd 3 is not a socket \(ENOTSOCK\)/, 'proxy', '--ps-socket', '3'],
    [/fd 3 is not a socket \(ENOTSOCK\)/, 'cache', '--ps-socket', '3'],
    [/fd 4 is not a connected stream socket/, 'proxy', '--ps-socket', '4'],
    [/--ps-socket and --port do not go together/, 'proxy', '--ps-socket', '4', '--port', '9'],
    [/--status-fd: fd 9 is not open/, 'proxy', '--status-fd', '9', '--port', '9'],
    [/--status-fd wants a number/, 'cache', '--status-fd', '1', '--port', '0'],
    [/fd 3 is not a socket/, ...onLink('LISTEN_PID=$$ LISTEN_FDS=1')],
    [/LISTEN_FDS hands over 3 sockets/, ...onLink('LISTEN_PID=$$ LISTEN_FDS=3')],
    [/LISTEN_FDS: fd 7 is not open/, ...onLink('LISTEN_PID=$$ LISTEN_FDS=9')],
    [/fd 3 does not listen on TCP/, ...onLink('exec 3<&4; LISTEN_PID=$$ LISTEN_FDS=1')],
    [/plain TCP to or from 0\.0\.0\.0/, ...onLink('exec 3<&6; LISTEN_PID=$$ LISTEN_FDS=1')],
    [/--port and LISTEN_FDS do not go together/, ...onLink('exec 3<&5; LISTEN_PID=$$ LISTEN_FDS=1'), '--port', '0'],
    [/--port is missing/, ...onLink('exec 3<&5; LISTEN_PID=1 LISTEN_FDS=1')],
  ] as [RegExp, string, ...string[]][]) {
    const both = [[], ['-d']].map(async (more) => {
      const ran = await run(command, [...args, ...(command === 'bash' ? [] : ['-D', source]), ...more], { fds })
      assert.is(ran.code, 2, `${args}: ${ran.stderr}`)
      assert.match(ran.stderr, message)
      assert.match(ran.stderr, /^\w+: error: [^\n]+\n(\w+: hint: [^\n]+\n)?$/)
      assert.not(existsSync(source), String(args))
    })
    await Promise.all(both)
  }
  closeSync(file)
  closeFd(listener)
  local.close()
  open.close()
})

test('directories that are missing: exit 1 and a hint', async ({ folder, source }) => {
  for (const args of [
    ['-W', join(folder, 'none')],
    ['-o', 'none/log'],
    ['--pidfile', 'none/pid'],
  ]) {
    for (const more of [[], ['-d']]) {
      const ran = await run('proxy', ['--port', '9', '-D', source, ...args, ...more], { cwd: folder })
      assert.is(ran.code, 1, String(args))
      assert.match(ran.stderr, /^proxy: error: [^\n]*none[^\n]*\nproxy: hint: [^\n]+\n$/)
      assert.equal(readdirSync(folder), [])
    }
  }
})

/** A TCP listener of ours as a descriptor that can be handed over. */
async function tcpListener(host = '127.0.0.1'): Promise<{ fd: Fd; port: number; close: () => void }> {
  const server = net.createServer().listen(0, host)
  await new Promise((resolve) => server.once('listening', resolve))
  const { fd } = (server as unknown as { _handle: { fd: number } })._handle
  return { fd: asFd(fd), port: (server.address() as net.AddressInfo).port, close: () => server.close() }
}

for (const more of ['', '-d']) {
  test(`LISTEN_FDS ${more}: the cache takes the listener over and needs no --port`, async ({
    folder,
    source,
    target,
  }) => {
    const listener = await tcpListener()
    const files = `-o ${folder}/log --pidfile ${folder}/pid`
    const line = `LISTEN_PID=$$ LISTEN_FDS=1 exec cache -D ${target} ${files} ${more}`
    const cache = start('bash', ['-c', line], { fds: [listener.fd] })
    await eventually(() => existsSync(serving(target)) || undefined, 'its socket')
    listener.close()
    const proxy = await startProxy(source, String(listener.port))
    await dumpAll(fakeDump(capture(source)), { 'name.img': Buffer.from('carried') })
    await proxy.says(/sealed by the cache/)
    assert.match(text(join(folder, 'log')), new RegExp(`listening on 127.0.0.1:${listener.port}\n`))
    await proxy.stop()
    const pid = Number(text(join(folder, 'pid')))
    started.push(pid)
    process.kill(pid, 'SIGTERM')
    assert.is((await cache.ended).code, more === '' ? 143 : 0)
    await eventually(() => !runs(pid) || undefined, 'its end')
  })
}

test('NOTIFY_SOCKET hears READY=1 when the sockets are there, and STOPPING=1', async ({ folder, source, target }) => {
  for (const [name, command, port, socket] of [
    [join(folder, 'notify'), 'cache', '0', serving(target)],
    [`@ferry-daemon-test-${process.pid}`, 'proxy', '9', capture(source)],
  ] as const) {
    const systemd = notifySocket(name)
    const folderOf = command === 'cache' ? target : source
    const daemon = start(command, ['--port', port, '-D', folderOf], { env: { NOTIFY_SOCKET: name } })
    assert.is(await within(systemd.next()), 'READY=1')
    assert.ok(existsSync(socket))
    assert.is((await daemon.stop()).code, 143)
    assert.is(await within(systemd.next()), 'STOPPING=1')
    systemd.close()
  }
})

test('NOTIFY_SOCKET that nobody listens on is said, and the daemon goes on', async ({ folder, source }) => {
  const proxy = start('proxy', ['--port', '9', '-D', source], { env: { NOTIFY_SOCKET: join(folder, 'none') } })
  await proxy.says(/streamer-capture.sock\nproxy: cannot tell systemd READY=1: cannot connect to .*: ENOENT/)
  assert.ok(existsSync(capture(source)))
  await proxy.stop()
})

test('SIGUSR1: a line of status, also when quiet; no debugger', async ({ source, target }) => {
  const { cache, port } = await startCache(target, ['--max-memory', '64M'])
  const proxy = start('proxy', ['-q', '--port', port, '-D', source])
  await eventually(() => existsSync(capture(source)) || undefined, 'its socket')
  const status = (snapshots: number, memory: string, links: number, restores: number): RegExp =>
    new RegExp(
      `cache: status: snapshots: ${snapshots}, chains: 0, memory: ${memory} of 64\\.0 MiB, links: ${links}, ` +
        `silent: 0, held for peers: 0 B, restores that wait: ${restores}\n`,
    )
  await statusIs(proxy, /proxy: status: dumps in progress: 0, sent: 0 B\n/)
  await statusIs(cache, status(0, '0 B', 0, 0))
  const parked = fakeRestore(serving(target))
  const image = parked.image('name.img').catch(() => undefined)
  await cache.says(/waiting/)
  const criu = fakeDump(capture(source))
  await criu.image('pages-1.img', pattern(1_000_000))
  await statusIs(proxy, /status: dumps in progress: 1, sent: (97[67]|98\d) KiB\n/)
  await statusIs(cache, status(0, '2\\.[89]\\d MiB', 1, 1))
  await dumpAll(criu, { 'name.img': Buffer.from('secret') })
  await statusIs(cache, status(1, '2\\.[89]\\d MiB', 0, 0))
  await statusIs(proxy, /status: dumps in progress: 0, sent: 9\d\d KiB\n/)
  assert.is((await image)?.toString(), 'secret')
  parked.close()
  for (const daemon of [proxy, cache]) {
    assert.is((await daemon.stop()).code, 143)
    assert.not.match(daemon.stderr(), /[Dd]ebugger|secret/)
  }
  assert.match(proxy.stderr(), /^(proxy: status: .*\n)+proxy: stopped by SIGTERM\n$/)
})

test('-v and -v4: the causes of a failure are said', async ({ source }) => {
  for (const [level, causes] of [
    [[], 0],
    [['-v'], 1],
    [['-vv'], 1],
    [['-v4'], 1],
  ] as const) {
    const proxy = await startProxy(source, '9', ['--timeout', '0.1', ...level])
    const criu = fakeDump(capture(source))
    closeFd(criu.open('pages-1.img'))
    await proxy.says(/failed: cannot connect to 127.0.0.1:9 \(ECONNREFUSED\)\nproxy: hint: .*\n/)
    criu.close()
    const { stderr } = await proxy.stop()
    assert.is(stderr.split('proxy: cause: connect ECONNREFUSED').length - 1, causes, String(level))
  }
})

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  test(`${signal} ends a detached daemon; a dump in progress fails, a restore that waits too`, async ({
    folder,
    source,
    target,
  }) => {
    const cache = await detached('cache', ['--port', '0', '-D', target], join(folder, 'cache.pid'))
    const proxy = await detached(
      'proxy',
      ['--port', cachePort(cache.ran.stderr), '-D', source],
      join(folder, 'proxy.pid'),
    )
    const criu = fakeDump(capture(source))
    const pipe = criu.open('pages-1.img')
    await writeAll(pipe, pattern(100_000))
    const parked = fakeRestore(serving(target))
    const image = parked.image('pages-1.img').catch(() => 'closed')
    await proxy.stop(signal)
    assert.instance(await writeAll(pipe, pattern(10_000_000)).catch((reason: Error) => reason), Error)
    await cache.stop(signal)
    assert.is(await image, 'closed')
    closeFd(pipe)
    criu.close()
    parked.close()
    assert.equal(readdirSync(folder).sort(), ['source', 'target'])
    assert.equal([...readdirSync(source), ...readdirSync(target)], [])
  })
}

test('the systemd units in docs/examples are in order', async ({ folder }) => {
  const units = ['criu-image-cache.socket', 'criu-image-cache.service'].map((name) => {
    // The command is installed elsewhere, and systemd looks for it.
    const unit = text(join(root, 'docs/examples', name)).replace(
      '/usr/local/bin/criu-image-cache',
      join(root, 'scripts/bin/cache'),
    )
    writeFileSync(join(folder, name), unit)
    return join(folder, name)
  })
  if ((await run('sh', ['-c', 'command -v systemd-analyze'])).code !== 0) {
    return console.log('skipped: systemd-analyze is not installed')
  }
  const ran = await run('systemd-analyze', ['verify', ...units])
  assert.is(ran.code, 0, ran.stderr)
  assert.not.match(ran.stderr, /criu-image-cache/)
})

test('a command that cannot start leaves no directory that it has made, and what was there', async ({ folder }) => {
  const taken = net.createServer().listen(0, '127.0.0.1').unref()
  await new Promise((done) => taken.once('listening', done))
  const { port } = taken.address() as net.AddressInfo
  const [made, deep] = [join(folder, 'made'), join(folder, 'd'.repeat(85 - folder.length))]
  writeFileSync(join(folder, 'pid'), String(process.pid))
  const lines: [line: string, message: RegExp][] = [
    [`cache --port ${port} -D ${made}`, /EADDRINUSE/],
    [`cache --port ${port} -D ${made} -d`, /EADDRINUSE/],
    [`cache --port 0 --address 192.0.2.1 --insecure -D ${made}`, /EADDRNOTAVAIL/],
    [`cache --port 0 --key-file ${folder}/none -D ${made}`, /none/],
    [`cache --port 0 --pidfile ${folder}/pid -D ${made}`, /holds the pidfile/],
    [`cache --port 0 --restore -D ${deep}`, /path/],
    [`cache --port 0 -D ${deep}${'d'.repeat(20)}`, /107 bytes/],
    [`proxy --port 9 --page-server-port ${port} -D ${made}`, /EADDRINUSE/],
    [`proxy --port 9 --key-file ${folder}/none -D ${made}`, /none/],
    [`restore-from-socket --listen -D ${made}`, /restore-from-socket: error/],
    [`restore-from-socket --listen -D ${deep}${'d'.repeat(20)}`, /107 bytes/],
  ]
  for (const [line, message] of lines) {
    const ran = await shell(line, { env: { FERRY_CRIU: '/bin/true' } })
    assert.match(ran.stderr, message, line)
    assert.ok((ran.code ?? 0) > 0, line)
    assert.equal(readdirSync(folder), ['pid'], line)
  }
  // One that another user could change is refused, and stays: it was not made here.
  mkdirSync(join(folder, 'theirs'), { mode: 0o777 })
  chmodSync(join(folder, 'theirs'), 0o777)
  mkdirSync(join(folder, 'theirs', 'empty'))
  assert.is((await run('cache', ['--port', '0', '-D', join(folder, 'theirs', 'empty')])).code, 2)
  assert.ok(existsSync(join(folder, 'theirs', 'empty')))
  rmSync(join(folder, 'theirs'), { recursive: true })
  mkdirSync(made)
  assert.is((await run('cache', ['--port', String(port), '-D', made])).code, 3)
  assert.equal(readdirSync(made), [], 'a directory that was there stays')
  const { cache } = await startCache(made)
  assert.match((await run('cache', ['--port', '0', '-D', made])).stderr, /cache: error/)
  assert.ok(existsSync(serving(made)))
  await cache.stop()
  taken.close()
})

test('--help of both says the common options, with every one of them', async () => {
  const { daemonOptions } = await import('../../lib/cli/daemon.ts')
  for (const command of ['proxy', 'cache']) {
    const help = (await run(command, ['--help'])).stdout.toString()
    for (const option of Object.keys(daemonOptions)) assert.match(help, new RegExp(`--${option}\\b`))
    for (const word of ['SIGUSR1', 'SIGTERM', 'NOTIFY_SOCKET']) assert.match(help, word)
  }
})

test.run()
