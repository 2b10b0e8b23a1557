import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { pageFlag } from '../../lib/format/pagemap.ts'
import { type Fd, makePipe, queued } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { EXTENT } from '../../lib/store/pool.ts'
import { within } from '../expect.ts'
import { type Daemons, daemons, startCache, startProxy } from '../support/daemons.ts'
import { dumpAll, type FakeDump, fakeDump, fakeRestore, incrementalCriu } from '../support/fake-criu.ts'
import { mappings } from '../support/mappings.ts'
import { part } from '../support/rounds.ts'
import { eventually, run, start, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/proxy-cache')

async function using(options: Parameters<typeof daemons>[0], body: (both: Daemons) => Promise<void>): Promise<void> {
  const both = await daemons(options)
  try {
    await body(both)
  } finally {
    await both.stop()
  }
}

const images = { 'pages-1.img': pattern(3_000_000, 1), 'core-1.img': pattern(2000, 2), 'empty.img': Buffer.alloc(0) }

test('images cross from a dump to a restore, and the cache says that it sealed them', () =>
  using({}, async ({ dump, restore, proxy, cache }) => {
    await dumpAll(dump(), images)
    const [, sealed] = await cache.says(/sealed: 4 images.*digest ([0-9a-f]{16})/)
    assert.ok(sealed)
    await proxy.says(/sent and sealed by the cache: 4 images/)
    for (let time = 0; time < 2; time++) {
      const criu = restore()
      for (const [name, bytes] of Object.entries(images)) assert.ok((await criu.image(name))?.equals(bytes), name)
      assert.is(await criu.image('memfd.img'), undefined)
      criu.close()
    }
    await cache.says(/served: 3 images[\s\S]*served: 3 images/)
  }))

test('who hands over the wrong end of a pipe changes no image, and the cache goes on', () =>
  using({}, async ({ dump, restore, cache }) => {
    await dumpAll(dump(), images)
    await cache.says(/sealed: 4 images/)
    const refused = 'the restore of \\S+ failed: a request with a descriptor that is not the write end of a pipe'
    const attack = async (name: string, end: Fd, times: number): Promise<void> => {
      const criu = restore()
      assert.ok(await criu.ask(name))
      criu.raw(Buffer.alloc(1), [end])
      criu.close()
      await within(cache.says(new RegExp(`(${refused}[^]*){${times}}`)))
    }
    const [full, feeder] = makePipe()
    await writeAll(feeder, Buffer.alloc(60_000, 'EVIL'))
    await attack('pages-1.img', full, 1)
    await attack('core-1.img', full, 2)
    assert.is(queued(full), 60_000)
    const [empty, into] = makePipe()
    closeFd(into)
    await attack('pages-1.img', empty, 3)
    for (const end of [full, feeder, empty]) closeFd(end)
    const criu = restore()
    for (const [name, bytes] of Object.entries(images)) assert.ok((await criu.image(name))?.equals(bytes), name)
    criu.close()
    const sealed = mappings(cache.child.pid as number).filter(({ rights, path }) => rights === 'r--p' && path === '')
    assert.ok(sealed.reduce((bytes, { begin, end }) => bytes + end - begin, 0) >= 3 * EXTENT)
    assert.is((await within(cache.stop())).code, 143)
  }))

test('a dump whose rounds went elsewhere is refused before its tasks are gone', () =>
  using({}, async ({ source, target, dump, proxy, cache }) => {
    await incrementalCriu(source, target)
    await proxy.says(/failed: criu dumps with --prev-images-dir: pages of the dump before would be missing/)
    await dumpAll(dump(), {
      ...part('b', [
        [0, 1, pageFlag.present],
        [1, 1, pageFlag.parent],
      ]),
      'core-7.img': pattern(2000, 2),
    })
    await proxy.says(/failed: the target refused: pagemap-7\.img has pages in a parent, which did not come here/)
    assert.not.match(cache.stderr(), / sealed/)
  }))

test('without checksums the images cross all the same, and the cache says that nobody looked at them', () =>
  using({ proxy: ['--no-checksum'] }, async ({ dump, restore, cache }) => {
    await dumpAll(dump(), images)
    await cache.says(/sealed: 4 images.*digest none: only sizes were compared/)
    const criu = restore()
    for (const [name, bytes] of Object.entries(images)) assert.ok((await criu.image(name))?.equals(bytes), name)
    criu.close()
  }))

test('a client that says nothing does not keep a proxy from its end', async () => {
  const { path, remove } = temporary()
  const proxy = await startProxy(path, '1')
  const silent = net.connect(join(path, 'streamer-capture.sock'))
  await eventually(() => readdirSync(path).some((name) => name.endsWith('.pre-dump.held')) || undefined, 'its gate')
  assert.is((await proxy.stop()).code, 143)
  assert.equal(readdirSync(path), [])
  silent.destroy()
  remove()
})

test('pages that wait for their stream do not keep a proxy from its end', async () => {
  const { path, remove } = temporary()
  const proxy = await startProxy(path, '1', ['--page-server-port', '0'])
  const [, port = ''] = await proxy.says(/listening on 127\.0\.0\.1:(\d+)/)
  const words = ['dump', '-t', '7', '-D', path, '--stream', '--page-server']
  const before = readdirSync(`/proc/${proxy.child.pid}/fd`).length
  const criu = start('bash', ['-c', `exec 3<>/dev/tcp/127.0.0.1/${port}; read -r -u 3`, ...words])
  await eventually(() => readdirSync(`/proc/${proxy.child.pid}/fd`).length > before || undefined, 'its connection')
  assert.is((await proxy.stop()).code, 143)
  assert.equal(readdirSync(path), [])
  await criu.ended
  remove()
})

test('a restore that comes first waits for the snapshot that is on its way', () =>
  using({}, async ({ dump, restore, cache }) => {
    const early = restore()
    const image = early.image('core-1.img')
    await cache.says(/waiting for the newest snapshot/)
    await dumpAll(dump(), images)
    assert.ok((await image)?.equals(images['core-1.img']))
    early.close()
  }))

test('the proxy may start before the cache, and CRIU may dump before it', async () => {
  const { path, remove } = temporary()
  const free = net.createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => free.once('listening', resolve))
  const port = String((free.address() as net.AddressInfo).port)
  await new Promise((resolve) => free.close(resolve))
  const proxy = await startProxy(join(path, 'source'), port)
  const dumping = dumpAll(fakeDump(join(path, 'source', 'streamer-capture.sock')), images)
  await new Promise((resolve) => setTimeout(resolve, 300))
  const { cache } = await startCache(join(path, 'target'), [], port)
  await dumping
  await cache.says(/sealed: 4 images/)
  await Promise.all([proxy.stop(), cache.stop()])
  remove()
})

test('a dump without inventory.img is never sealed, and the cache goes on', () =>
  using({ cache: ['--timeout', '0.5'] }, async ({ dump, restore, proxy, cache }) => {
    const broken = dump()
    await broken.image('core-1.img', images['core-1.img'])
    broken.close()
    await proxy.says(/failed: the dump did not finish: inventory.img is missing/)
    await cache.says(/failed: the source gave up: the dump did not finish/)
    const criu = restore()
    assert.is(await criu.image('core-1.img').catch(() => 'closed'), 'closed')
    criu.close()
    await cache.says(/no snapshot was sealed within 0.5 s/)
    await dumpAll(dump(), images)
    await cache.says(/sealed: 4 images/)
  }))

test('two dumps at once through one proxy do not mix', () =>
  using({}, async ({ dump, cache, port, folder }) => {
    const [one, two] = [dump(), dump()]
    const pipes = [one.open('pages-1.img'), two.open('pages-1.img')] as const
    for (let at = 0; at < 10; at++) {
      await writeAll(pipes[0], Buffer.alloc(50_000, 1))
      await writeAll(pipes[1], Buffer.alloc(50_000, 2))
    }
    for (const pipe of pipes) closeFd(pipe)
    await Promise.all([dumpAll(one, {}), dumpAll(two, {})])
    await cache.says(/sealed[\s\S]*sealed/)
    const ids = [...cache.stderr().matchAll(/snapshot (\S+) sealed/g)].map((match) => match[1] as string)
    const seen = new Set<string>()
    for (const id of ids) {
      const out = join(folder, id)
      const pulled = await run('restore-from-socket', [
        '--from',
        `127.0.0.1:${port}`,
        '--snapshot',
        id,
        '--to-dir',
        out,
      ])
      assert.is(pulled.code, 0, pulled.stderr)
      const pages = readFileSync(join(out, 'pages-1.img'))
      assert.is(pages.length, 500_000)
      assert.ok(pages.equals(Buffer.alloc(500_000, pages[0])))
      seen.add(String(pages[0]))
    }
    assert.is(seen.size, 2)
  }))

/** Puts a snapshot `id` into the cache, whose one image says the id. */
async function dumpAs(id: string, { dump, source, port }: Pick<Daemons, 'dump' | 'source' | 'port'>): Promise<void> {
  const named = await startProxy(source, port, ['--snapshot', id])
  await dumpAll(dump(), { 'name.img': Buffer.from(id) })
  await named.says(/sealed by the cache/)
  await named.stop()
}

test('snapshots are kept by id: chosen, newest by default, never replaced', () =>
  using({}, async ({ dump, restore, proxy, cache, source, port, folder }) => {
    await proxy.stop()
    for (const id of ['first', 'second']) await dumpAs(id, { dump, source, port })
    const newest = restore()
    assert.is((await newest.image('name.img'))?.toString(), 'second')
    newest.close()
    const from = ['--from', `127.0.0.1:${port}`]
    const out = join(folder, 'out')
    const pulled = await run('restore-from-socket', [...from, '--snapshot', 'first', '--to-dir', out])
    assert.is(pulled.code, 0, pulled.stderr)
    assert.is(readFileSync(join(out, 'name.img'), 'utf8'), 'first')

    const again = await startProxy(source, port, ['--snapshot', 'first'])
    await dumpAll(dump(), { 'name.img': Buffer.from('other') }).catch(() => {})
    await again.says(/failed: the target refused: a snapshot first is here already/)
    await again.stop()
    const missing = await run('restore-from-socket', [...from, '--snapshot', 'third', '--timeout', '0.3'])
    assert.is(missing.code, process.env.FERRY_CRIU === 'none' ? 5 : 6, missing.stderr)
    await cache.stop()
  }))

test('the cache serves the snapshot that --snapshot names', () =>
  using({ cache: ['--snapshot', 'wanted'] }, async ({ dump, restore, source, port, proxy }) => {
    await proxy.stop()
    for (const id of ['wanted', 'later']) await dumpAs(id, { dump, source, port })
    const criu = restore()
    assert.is((await criu.image('name.img'))?.toString(), 'wanted')
    criu.close()
  }))

test('the newest snapshot is the one that was sealed last, whatever still arrives', () =>
  using({}, async ({ dump, restore, cache }) => {
    const take = async (): Promise<string | undefined> => {
      const criu = restore()
      const image = await criu.image('name.img')
      criu.close()
      return image?.toString()
    }
    await dumpAll(dump(), { 'name.img': Buffer.from('old') })
    await cache.says(/the cache keeps its images/)
    const next = dump()
    await next.image('name.img', Buffer.from('new'))
    assert.is(await take(), 'old')
    await dumpAll(next, {})
    await cache.says(/(the cache keeps its images[\s\S]*){2}/)
    assert.is(await take(), 'new')
  }))

test('a full cache refuses with the reason, keeps what it has, and the dump fails', () =>
  using({ cache: ['--max-memory', '6M'] }, async ({ dump, restore, proxy, cache }) => {
    await dumpAll(dump(), { 'name.img': Buffer.from('kept') })
    await cache.says(/sealed/)
    const criu = dump()
    const failed = await criu.image('pages-1.img', pattern(20_000_000)).then(
      () => false,
      () => true,
    )
    criu.close()
    assert.ok(failed, 'CRIU gets EPIPE')
    await proxy.says(/failed: the target refused: the memory for images is full: 6.00 MiB of 6.00 MiB/)
    const kept = restore()
    assert.is((await kept.image('name.img'))?.toString(), 'kept')
    kept.close()
    await dumpAll(dump(), { 'name.img': Buffer.from('fits') })
    await cache.says(/sealed[\s\S]*sealed/)
  }))

test('a cache that dies fails the dump; the proxy goes on', () =>
  using({ proxy: ['--timeout', '1'] }, async ({ dump, proxy, cache }) => {
    const criu = dump()
    const pipe = criu.open('pages-1.img')
    await writeAll(pipe, pattern(100_000))
    // More than is kept for a link: CRIU waits for us, and we do not wait for it.
    const writing = writeAll(pipe, pattern(20_000_000)).catch((reason: Error) => reason)
    await cache.stop('SIGKILL')
    await proxy.says(/failed: (the target closed the link|.*went away|cannot connect)/)
    assert.instance(await writing, Error)
    closeFd(pipe)
    criu.close()
    const second = dump()
    closeFd(second.open('pages-1.img'))
    await proxy.says(/cannot connect to 127.0.0.1:\d+ \(ECONNREFUSED\)/)
    second.close()
    assert.not.match(proxy.stderr(), /Warning/)
    assert.is(proxy.child.exitCode, null)
  }))

test('a slow target slows the dump; the proxy stays small', async () => {
  const { path, remove } = temporary()
  const perTick = 2 ** 20 / 20
  const server = net.createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', () => {})
    const timer = setInterval(() => socket.read(perTick), 50)
    socket.on('close', () => clearInterval(timer))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const proxy = await startProxy(path, String((server.address() as net.AddressInfo).port))
  const criu = fakeDump(join(path, 'streamer-capture.sock'))
  const pipe = criu.open('pages-1.img')
  const chunk = pattern(2 ** 20)
  let taken = 0
  const writing = (async () => {
    for (;;) {
      await writeAll(pipe, chunk)
      taken += chunk.length
    }
  })()
  writing.catch(() => {})
  await new Promise((resolve) => setTimeout(resolve, 4000))
  assert.ok(taken > 0, 'bytes flow')
  assert.ok(taken < 64 * 2 ** 20, `the dump is held back, ${taken} bytes were taken`)
  const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${proxy.child.pid}/status`, 'utf8'))?.[1]
  assert.ok(Number(peak) < 150 * 1024, `the proxy's peak is ${peak} KiB`)
  closeFd(pipe)
  criu.close()
  await proxy.stop()
  server.close()
  remove()
})

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`${signal}: sockets are removed, exit code is 128 + n, a dump in progress fails`, async () => {
    const both = await daemons()
    const criu = both.dump()
    const pipe = criu.open('pages-1.img')
    await writeAll(pipe, pattern(100_000))
    const parked = both.restore()
    const image = parked.image('pages-1.img').catch(() => 'closed')
    await both.cache.says(/waiting/)
    const ran = await both.proxy.stop(signal)
    assert.is(ran.code, signal === 'SIGTERM' ? 143 : 130)
    assert.not(existsSync(join(both.source, 'streamer-capture.sock')))
    assert.instance(await writeAll(pipe, pattern(10_000_000)).catch((reason: Error) => reason), Error)
    closeFd(pipe)
    criu.close()
    const stopped = await both.cache.stop(signal)
    assert.is(stopped.code, signal === 'SIGTERM' ? 143 : 130)
    assert.not(existsSync(join(both.target, 'streamer-serve.sock')))
    assert.is(await image, 'closed')
    parked.close()
    await both.stop()
  })
}

test('sockets are 0600, a stale one is replaced, a live one is not', async () => {
  const both = await daemons()
  for (const socket of [join(both.source, 'streamer-capture.sock'), join(both.target, 'streamer-serve.sock')]) {
    assert.is(statSync(socket).mode & 0o777, 0o600)
  }
  assert.is(statSync(both.source).mode & 0o777, 0o700)
  const second = await run('proxy', ['--port', both.port, '-D', both.source])
  assert.is(second.code, 1)
  assert.match(second.stderr, /^proxy: error: somebody listens on .*streamer-capture.sock already\nproxy: hint: /)
  const taken = await run('cache', ['--port', both.port, '-D', join(both.folder, 'other')])
  assert.is(taken.code, 3)
  assert.match(taken.stderr, /cannot listen on 127.0.0.1:\d+ \(EADDRINUSE\)/)
  await both.proxy.stop('SIGKILL')
  assert.ok(existsSync(join(both.source, 'streamer-capture.sock')))
  const again = await startProxy(both.source, both.port)
  await again.stop()
  await both.stop()
})

test('a stranger on the port gets a refusal and harms nobody', () =>
  using({}, async ({ port, cache, dump }) => {
    const socket = net.connect(Number(port), '127.0.0.1')
    socket.on('error', () => {})
    socket.resume()
    socket.end('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await cache.says(/failed: this is not a criu-ferry stream/)
    await dumpAll(dump(), images)
    await cache.says(/sealed/)
  }))

test('a file in the way of the socket is left alone', async () => {
  const { path, remove } = temporary()
  const { writeFileSync } = await import('node:fs')
  writeFileSync(join(path, 'streamer-capture.sock'), 'precious')
  const ran = await run('proxy', ['--port', '9', '-D', path])
  assert.is(ran.code, 1)
  assert.is(readFileSync(join(path, 'streamer-capture.sock'), 'utf8'), 'precious')
  remove()
})

test('restore-from-socket --listen hands a cached snapshot to a restore that comes later', () =>
  using({}, async ({ dump, cache, port, folder }) => {
    await dumpAll(dump(), images)
    await cache.says(/sealed/)
    const work = join(folder, 'work')
    const pull = start('restore-from-socket', ['-v', '--from', `127.0.0.1:${port}`, '--listen', '-D', work])
    await pull.says(/listening on/)
    const criu = fakeRestore(join(work, 'streamer-serve.sock'))
    assert.ok((await criu.image('pages-1.img'))?.equals(images['pages-1.img']))
    criu.close()
    assert.is((await pull.ended).code, 0)
    assert.not(existsSync(join(work, 'streamer-serve.sock')))
  }))

test('one at a time gets what was handed over: nobody beside a restore', () =>
  using({ proxy: ['--snapshot', 'one'] }, async ({ dump, restore, cache, port, folder }) => {
    await dumpAll(dump(), images)
    await cache.says(/handed over: the source is gone, the cache keeps its images/)
    const criu = restore()
    assert.ok((await criu.image('core-1.img'))?.equals(images['core-1.img']))
    const pull = (): ReturnType<typeof run> =>
      run('restore-from-socket', ['--from', `127.0.0.1:${port}`, '--snapshot', 'one', '--to-dir', join(folder, 'out')])
    const beside = await pull()
    assert.is(beside.code, 1, beside.stderr)
    assert.match(beside.stderr, /refused: snapshot one is reviving/)
    criu.close()
    await cache.says(/served/)
    assert.is((await pull()).code, 0)
  }))

test('hundreds of images open at once: all arrive, in order, through the proxy and through a pipe', () =>
  using({}, async ({ dump, restore, proxy, cache, folder }) => {
    const many = (criu: FakeDump): Promise<void> =>
      dumpAll(
        criu,
        Object.fromEntries(Array.from({ length: 600 }, (_, n) => [`ghost-file-${n}.img`, pattern(n * 7, n)])),
      )
    await many(dump())
    await proxy.says(/sealed by the cache: 601 images/)
    const criu = restore()
    for (const n of [0, 1, 31, 32, 64, 599]) {
      assert.ok((await criu.image(`ghost-file-${n}.img`))?.equals(pattern(n * 7, n)), String(n))
    }
    criu.close()
    await cache.says(/served/)
    const work = join(folder, 'work')
    const line = `dump-to-stdout -v --listen -D ${work} | restore-from-socket --to-dir ${folder}/out`
    const pipeline = start('bash', ['-o', 'pipefail', '-c', line])
    await pipeline.says(/listening/)
    await many(fakeDump(join(work, 'streamer-capture.sock')))
    assert.is((await pipeline.ended).code, 0, pipeline.stderr())
    assert.ok(readFileSync(join(folder, 'out', 'ghost-file-500.img')).equals(pattern(3500, 500)))
  }))

test('CRIU is read from while the cache is not there yet, and its pipes are emptied', async () => {
  const { path, remove } = temporary()
  const proxy = await startProxy(path, '9', ['--timeout', '20'])
  const criu = fakeDump(join(path, 'streamer-capture.sock'))
  const pipe = criu.open('pages-1.img')
  await writeAll(pipe, pattern(60_000))
  const { openSync, closeSync } = await import('node:fs')
  // A second look at the same pipe: it must be empty soon after its writer is gone.
  const look = openSync(`/proc/self/fd/${pipe}`, 'r')
  closeFd(pipe)
  const { FIONREAD, ioctlInt } = await import('../../lib/kernel/libc.ts')
  const left = new Int32Array(1)
  await eventually(() => ioctlInt(look, FIONREAD, left) < 0 || left[0] === 0 || undefined, 'an empty pipe', 5000)
  closeSync(look)
  criu.close()
  await proxy.stop()
  remove()
})

test('a cache without descriptors refuses links and lives on; its stderr may be closed', async () => {
  const { path, remove } = temporary()
  const cache = start('cache', ['--port', '0', '-D', `${path}/target`])
  const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
  // Not before: the start may have to compile, for which tsx needs descriptors of its own.
  assert.is((await run('prlimit', ['--pid', String(cache.child.pid), '--nofile=64:64'])).code, 0)
  const sockets = Array.from({ length: 100 }, () => net.connect(Number(port), '127.0.0.1').on('error', () => {}))
  await new Promise((resolve) => setTimeout(resolve, 500))
  cache.child.stderr?.destroy()
  for (const socket of sockets) socket.end('no stream at all, but long enough for a preamble')
  await new Promise((resolve) => setTimeout(resolve, 500))
  for (const socket of sockets) socket.destroy()
  const proxy = await startProxy(join(path, 'source'), port)
  await dumpAll(fakeDump(join(path, 'source', 'streamer-capture.sock')), images)
  await proxy.says(/sealed by the cache/)
  await proxy.stop()
  assert.is((await cache.stop()).code, 143)
  remove()
})

test('fds of the daemons do not grow with snapshots and restores', () =>
  using({}, async ({ dump, restore, proxy, cache }) => {
    const { readdirSync } = await import('node:fs')
    const fds = (pid = 0): number => readdirSync(`/proc/${pid}/fd`).length
    const counts: string[] = []
    for (let time = 1; time <= 12; time++) {
      await dumpAll(dump(), { 'name.img': Buffer.from(String(time)) })
      await eventually(() => proxy.stderr().split('sealed by the cache').length > time || undefined, 'sealing')
      const criu = restore()
      assert.is((await criu.image('name.img'))?.toString(), String(time))
      criu.close()
      await eventually(() => cache.stderr().split('served: 1').length > time || undefined, 'serving')
      if (time === 2 || time === 12) counts.push(`${fds(proxy.child.pid)} ${fds(cache.child.pid)}`)
    }
    assert.is(counts[0], counts[1])
  }))

test.run()
