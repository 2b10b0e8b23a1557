/**
 * criu --remote by proxy and cache: both daemons as processes, a client written from the protocol, real sockets and
 * pipes.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { gunzipSync } from 'node:zlib'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DUMP_SOCKET, RESTORE_SOCKET } from '../../lib/criu-remote/local-wire.ts'
import { encode, openMode } from '../../lib/criu-remote/messages.ts'
import { localImageEntry } from '../../lib/format/criu-messages.ts'
import { pageFlag } from '../../lib/format/pagemap.ts'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { connectUnix } from '../../lib/kernel/unix.ts'
import { reasonOf, waits, within } from '../expect.ts'
import { pagesByAddress } from '../support/chains.ts'
import { daemons } from '../support/daemons.ts'
import { dumpAll } from '../support/fake-criu.ts'
import { type FakeRemote, type Form, fakeRemote } from '../support/fake-remote-criu.ts'
import { type Brief, type Images, imagesIn, inventory, part, putInto } from '../support/rounds.ts'
import { eventually, fixtures, type Ran, type Running, root, run, start } from '../support/run.ts'
import { asServed } from '../support/served.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/remote')

const here = await daemons()
const real = imagesIn(join(fixtures, 'images'))
let count = 0
/** A `-D` that no other test has. */
function fresh(): string {
  const path = join(here.folder, `d${++count}`)
  mkdirSync(path)
  return path
}
const dumper = (snapshot: string, form?: Form, words?: boolean): FakeRemote =>
  fakeRemote(join(here.source, DUMP_SOCKET), snapshot, form, words)
const restorer = (snapshot: string, form?: Form, words?: boolean): FakeRemote =>
  fakeRemote(join(here.target, RESTORE_SOCKET), snapshot, form, words)

/** The next that a daemon says after this. */
function next(daemon: Running, pattern: RegExp): Promise<RegExpExecArray> {
  const before = daemon.stderr().length
  const flags = pattern.flags.includes('g') ? pattern.flags : `${pattern.flags}g`
  const from = new RegExp(pattern, flags)
  const looking = {
    exec(text: string) {
      from.lastIndex = before
      return from.exec(text)
    },
    toString: () => String(pattern),
  }
  return within(daemon.says(looking as unknown as RegExp), `${pattern}`)
}

const sealed = (): Promise<unknown> => next(here.cache, /^cache: snapshot \S+ sealed/m)

async function dumpOf(criu: FakeRemote, images: Images): Promise<void> {
  await criu.push()
  for (const [name, bytes] of Object.entries(images)) if (name !== 'inventory.img') await criu.write(name, bytes)
  await criu.write('inventory.img', images['inventory.img'] ?? inventory)
  await criu.finish('dump')
}

async function expectImages(criu: FakeRemote, images: Images): Promise<void> {
  assert.equal(await within(criu.pull()), [criu.snapshot])
  for (const [name, bytes] of Object.entries(images)) {
    const got = await within(criu.read(name), name)
    assert.ok(got?.equals(await asServed(name, bytes)), `${name}: ${got?.length} bytes, ${bytes.length} were dumped`)
  }
}

/** A criu with a command line of its own. */
function criu(args: string[]): Promise<Ran> {
  return run(process.execPath, ['--import', 'tsx', join(root, 'test/support/fake-remote-criu.ts'), ...args], {
    cwd: root,
  })
}

interface Tree {
  pid: number
  dump(
    action: 'pre-dump' | 'dump',
    snapshot: string,
    images: string,
    more?: string[],
  ): Promise<Record<string, Buffer | null>>
  kill(): void
}

/** Something to be dumped; only its number matters. */
function tree(form: Form = 'pipes'): Tree {
  const task: ChildProcess = spawn('sleep', ['1000'], { stdio: 'ignore' })
  const pid = task.pid as number
  return {
    pid,
    async dump(action, snapshot, images, more = []) {
      const socket = join(here.source, DUMP_SOCKET)
      const line = [action, '-t', String(pid), '-D', snapshot, '--remote', '--images', images, '--socket', socket]
      const ran = await criu([...line, '--form', form, ...more])
      if (more.includes('--die') || more.includes('--no-finish')) return {}
      assert.is(ran.code, 0, ran.stderr)
      const read: [string, string | null][] = Object.entries(JSON.parse(ran.stdout.toString()))
      return Object.fromEntries(read.map(([what, hex]) => [what, hex === null ? null : Buffer.from(hex, 'hex')]))
    },
    kill: () => task.kill('SIGKILL'),
  }
}

const [present, parent] = [pageFlag.present, pageFlag.parent]

function directoryOf(word: string, briefs: readonly Brief[], full = false): string {
  const images = full ? { ...real, ...part(word, briefs, 9) } : part(word, briefs, 9)
  return putInto(join(here.folder, `images-${++count}`), { ...images, 'inventory.img': inventory })
}

for (const [form, words] of [
  ['pipes', false],
  ['socket', false],
  ['socket', true],
] as const) {
  const age = form === 'pipes' ? 'of 2020' : words ? 'of 2018, with DUMP_FINISH' : 'of 2019'
  test(`a dump and its restore, as ${age}: every image byte for byte, ENOENT for others, both finishes`, async () => {
    const snapshot = fresh()
    const here1 = sealed()
    await dumpOf(dumper(snapshot, form, words), real)
    await within(here1)
    const back = restorer(snapshot, form, words)
    await expectImages(back, real)
    assert.is(await within(back.read('memfd.img')), undefined)
    const served = next(here.cache, /snapshot \S+ served: (\d+) images/)
    await within(back.finish('restore'))
    assert.is((await served)[1], String(Object.keys(real).length))
  })
}

test('the sockets are for this user only', () => {
  for (const path of [join(here.source, DUMP_SOCKET), join(here.target, RESTORE_SOCKET)]) {
    assert.is(statSync(path).mode & 0o777, 0o600)
  }
})

test('push and append: the list of a chain grows, and the second push does not wipe the first (3.2.1)', async () => {
  const task = tree()
  const ids = [fresh(), fresh(), fresh()]
  try {
    const rounds: [string, Brief[]][] = [
      ['one', [[1, 6, present]]],
      [
        'two',
        [
          [1, 1, present],
          [2, 5, parent],
        ],
      ],
    ]
    const lists: unknown[] = []
    for (const [at, [word, briefs]] of rounds.entries()) {
      const round = next(here.proxy, /round \d+: (\d+) pages/)
      const read = await task.dump('pre-dump', ids[at] as string, directoryOf(word, briefs))
      lists.push(JSON.parse(String(read.parent)))
      assert.is((await round)[1], at === 0 ? '6' : '1')
    }
    const done = sealed()
    const read = await task.dump(
      'dump',
      ids[2] as string,
      directoryOf(
        'three',
        [
          [1, 2, parent],
          [3, 1, present],
          [4, 3, parent],
        ],
        true,
      ),
    )
    lists.push(JSON.parse(String(read.parent)))
    await done
    assert.equal(lists, [ids.slice(0, 1), ids.slice(0, 2), ids])
    const back = restorer(ids[2] as string)
    assert.equal(await within(back.pull()), [ids[2]])
    const whole = putInto(join(here.folder, `whole-${++count}`), {
      'pagemap-7.img': (await back.read('pagemap-7.img')) as Buffer,
      'pages-9.img': (await back.read('pages-9.img')) as Buffer,
    })
    const words = [...pagesByAddress(whole, 'pagemap-7.img')].map(
      ([vaddr, page]) => `${vaddr / 4096}: ${String(page).slice(0, 5)}`,
    )
    assert.equal(
      words,
      ['1: two 1', '2: one 2', '3: three', '4: one 4', '5: one 5', '6: one 6'].map((word) => word.slice(0, 8)),
    )
    await back.finish('restore')
  } finally {
    task.kill()
  }
})

test('a dump reads the pagemaps of its parents, and their inventory, and drags no pages (3.1, 3.2.2)', async () => {
  const task = tree('socket')
  const [one, two] = [fresh(), fresh()]
  try {
    const first = directoryOf('one', [[1, 2000, present]])
    await task.dump('pre-dump', one, first)
    const asked = [`pages-9.img=${one}`, `inventory.img=${one}`, `pagemap-8.img=${one}`, 'pagemap-7.img=/other']
    const second = directoryOf('two', [[1, 2000, parent]])
    const read = await task.dump(
      'pre-dump',
      two,
      second,
      asked.flatMap((what) => ['--read', what]),
    )
    assert.ok(read[`pagemap-7.img=${one}`]?.equals(readFileSync(join(first, 'pagemap-7.img'))))
    assert.equal(
      asked.map((what) => read[what]?.length ?? null),
      [0, inventory.length, null, null],
    )
  } finally {
    task.kill()
  }
})

test('another proxy in the same place is refused, and the chain goes on by the first (3.2.3)', async () => {
  const task = tree()
  const [one, two] = [fresh(), fresh()]
  try {
    await task.dump('pre-dump', one, directoryOf('one', [[1, 3, present]]))
    const again = await run('proxy', ['--port', here.port, '-D', here.source])
    assert.is(again.code, 1)
    const read = await task.dump('pre-dump', two, directoryOf('two', [[1, 3, parent]]))
    assert.equal(JSON.parse(String(read.parent)), [one, two])
  } finally {
    task.kill()
  }
})

test('a restore that is started before the dump waits, finds its id in the list, and its readers wake', async () => {
  // Nothing else is here to be restored.
  const own = await daemons()
  try {
    const back = fakeRemote(join(own.target, RESTORE_SOCKET), '/tmp/early')
    const list = back.pull()
    list.catch(() => {})
    const readers = [1, 2, 3].map(() => back.read('pages-1.img'))
    for (const reader of readers) reader.catch(() => {})
    assert.ok(await waits(Promise.race([list, ...readers])))
    await dumpOf(fakeRemote(join(own.source, DUMP_SOCKET), '/tmp/early'), real)
    assert.equal(await within(list), ['/tmp/early'])
    for (const reader of readers) assert.ok((await within(reader))?.equals(real['pages-1.img'] as Buffer))
  } finally {
    await own.stop()
  }
})

test('a failed dump looks the same as a good one: not sealed, and whoever waits for it is refused (2.2)', async () => {
  const own = await daemons()
  try {
    const back = fakeRemote(join(own.target, RESTORE_SOCKET), '/tmp/bad')
    const list = reasonOf(back.pull())
    const image = reasonOf(back.read('core-1.img'))
    await own.cache.says(/waiting for/)
    const bad = fakeRemote(join(own.source, DUMP_SOCKET), '/tmp/bad')
    await bad.push()
    await bad.write('core-1.img', pattern(3000))
    await bad.finish('dump')
    await within(own.proxy.says(/failed: the dump did not finish: inventory.img is missing/))
    for (const reason of await within(Promise.all([list, image]))) {
      assert.match(String(reason), 'Unexpected error 5', 'neither there nor missing')
    }
    assert.not.match(own.cache.stderr(), /snapshot \S+ sealed/)
  } finally {
    await own.stop()
  }
})

test('a restore that waits is not refused for a round, a chain or a dump that is another one', async () => {
  const own = await daemons()
  const [mine, other] = [fresh(), fresh()]
  const proxySocket = join(own.source, DUMP_SOCKET)
  const task = spawn('sleep', ['1000'], { stdio: 'ignore' })
  const into = join(here.folder, `into-${++count}`)
  const restore = (snapshot: string): Promise<Ran> =>
    criu(['restore', '-D', snapshot, '--remote', '--socket', join(own.target, RESTORE_SOCKET), '--into', into])
  try {
    const [waiting, hopeless] = [restore(mine), restore(other)]
    for (const snapshot of [mine, other])
      await within(own.cache.says(new RegExp(`waiting for a snapshot for "${snapshot}"`)))
    const images = directoryOf('one', [[1, 3, present]])
    const round = ['pre-dump', '-t', String(task.pid), '-D', fresh(), '--remote', '--socket', proxySocket]
    for (const more of [['--die'], []]) await criu([...round, '--images', images, ...more])
    await within(own.cache.says(/round 1 of snapshot/))
    task.kill('SIGKILL')
    await within(own.cache.says(/round 1 of snapshot (\S+) sealed[\s\S]*\1 failed: the source gave up: no other round/))
    const bad = fakeRemote(proxySocket, other)
    await bad.push()
    await bad.write('core-1.img', pattern(3000))
    await bad.finish('dump')
    await within(own.cache.says(/failed: the source gave up: the dump did not finish/))
    assert.match((await within(hopeless)).stderr, 'Unexpected error 5')
    assert.ok(await waits(waiting), own.cache.stderr())
    await dumpOf(fakeRemote(proxySocket, mine), real)
    assert.is((await within(waiting)).code, 0)

    const slow = fakeRemote(proxySocket, other)
    await slow.push()
    const open = await slow.open('core-1.img')
    await within(own.proxy.says(/handed over/))
    assert.is((await within(restore(mine), 'a snapshot that is here, while another one comes')).code, 0)
    closeFd(open)
    await slow.finish('dump')
  } finally {
    task.kill('SIGKILL')
    await own.stop()
  }
})

test('FINISH race: it does not overtake an image that is still being written (3.3)', async () => {
  const snapshot = fresh()
  const from = dumper(snapshot)
  await from.push()
  const into = await from.open('pages-1.img')
  await from.write('inventory.img', inventory)
  await from.finish('dump')
  const done = sealed()
  assert.ok(await waits(done))
  await writeAll(into, real['pages-1.img'] as Buffer)
  closeFd(into)
  await done
  await expectImages(restorer(snapshot), { 'pages-1.img': real['pages-1.img'] as Buffer })
})

test('empty images are there, and those of a multiple of 4096 bytes end where they end', async () => {
  const images: Images = {
    'pages-1.img': Buffer.alloc(0),
    'pages-2.img': pattern(4096),
    'pages-3.img': pattern(40_960, 3),
    'core-1.img': pattern(4097),
  }
  for (const form of ['pipes', 'socket'] as const) {
    const snapshot = fresh()
    const done = sealed()
    await dumpOf(dumper(snapshot, form), images)
    await done
    await expectImages(restorer(snapshot, form), images)
  }
})

test('re-writing an image replaces it: it is the second one, and an append adds to it (3.3)', async () => {
  const snapshot = fresh()
  const done = sealed()
  const from = dumper(snapshot)
  await from.push()
  await from.write('a.img', pattern(5000, 1))
  await from.write('a.img', pattern(3000, 2))
  await from.write('b.img', pattern(5000, 3))
  await from.write('b.img', pattern(4096, 4), { append: true })
  await from.write('b.img', pattern(10, 5), { append: true })
  await from.write('inventory.img', inventory)
  await from.finish('dump')
  await done
  const expected = {
    'a.img': pattern(3000, 2),
    'b.img': Buffer.concat([pattern(5000, 3), pattern(4096, 4), pattern(10, 5)]),
  }
  await expectImages(restorer(snapshot), expected)
})

test('large images go on as they come, several at a time, and one of them is not written again', async () => {
  const snapshot = fresh()
  const from = dumper(snapshot)
  await from.push()
  const bytes = pattern(9_000_001)
  const done = sealed()
  await Promise.all(['pages-1.img', 'pages-2.img', 'tmpfs.img'].map((name) => from.write(name, bytes)))
  await from.write('inventory.img', inventory)
  await from.finish('dump')
  await done
  await expectImages(restorer(snapshot), { 'pages-2.img': bytes, 'tmpfs.img': bytes })
  const other = dumper(fresh())
  await other.push()
  await other.write('pages-1.img', bytes)
  const refused = next(here.proxy, /pages-1.img is written again, and has been sent on/)
  await reasonOf(other.write('pages-1.img', bytes)).catch(() => {})
  await refused
})

test('pipe EOF after a dump crash is no complete image: a criu that is killed leaves no snapshot (3.3)', async () => {
  const task = tree()
  try {
    const failed = next(here.proxy, /snapshot .* failed: criu ended before its images were complete/)
    await task.dump('dump', fresh(), directoryOf('one', [[1, 3, present]], true), ['--die'])
    await failed
  } finally {
    task.kill()
  }
})

test('a criu that is killed after the process, and before FINISH, leaves the only copy: it is sealed', async () => {
  const task = tree()
  const snapshot = fresh()
  try {
    const done = sealed()
    await task.dump('dump', snapshot, directoryOf('one', [[1, 3, present]], true), ['--no-finish'])
    await done
    await expectImages(restorer(snapshot), {
      'core-18177.img': real['core-18177.img'] as Buffer,
      'inventory.img': inventory,
    })
  } finally {
    task.kill()
  }
})

test('a pre-dump that is killed ends its chain: the next dump has no parent', async () => {
  const task = tree()
  try {
    await task.dump('pre-dump', fresh(), directoryOf('one', [[1, 3, present]]))
    const failed = next(here.proxy, /the pre-dump of .* failed: criu ended before/)
    await task.dump('pre-dump', fresh(), directoryOf('two', [[1, 3, present]]), ['--die'])
    await failed
    const third = fresh()
    const read = await task.dump('pre-dump', third, directoryOf('three', [[1, 3, present]]))
    assert.equal(JSON.parse(String(read.parent)), [third])
  } finally {
    task.kill()
  }
})

test('a criu that is gone before anybody has heard it is over all the same', async () => {
  const task = tree()
  const { proxy, cache } = here
  try {
    const failed = next(proxy, /snapshot .* failed: criu ended before/)
    proxy.child.kill('SIGSTOP')
    const dead = fresh()
    await task.dump('pre-dump', dead, directoryOf('one', [[1, 3, present]]), ['--die', '--unheard'])
    proxy.child.kill('SIGCONT')
    await failed
    const snapshot = fresh()
    const done = next(cache, /snapshot \S+ handed over/)
    await dumpOf(dumper(snapshot), { 'a.img': pattern(100) })
    await done
    const served = next(cache, /served: 0 images|a restore of .* failed: the restore left before/)
    cache.child.kill('SIGSTOP')
    await criu(['restore', '-D', snapshot, '--remote', '--unheard', '--socket', join(here.target, RESTORE_SOCKET)])
    cache.child.kill('SIGCONT')
    await served
    await expectImages(restorer(snapshot), { 'a.img': pattern(100) })
  } finally {
    proxy.child.kill('SIGCONT')
    cache.child.kill('SIGCONT')
    task.kill()
  }
})

test('the same -D again begins a new chain, and its newest dump is the one that is restored', async () => {
  const task = tree()
  const id = fresh()
  try {
    for (const word of ['one', 'two']) {
      const read = await task.dump('pre-dump', id, directoryOf(word, [[1, 3, present]]))
      assert.equal(JSON.parse(String(read.parent)), [id])
    }
    for (const word of ['three', 'four']) {
      const done = sealed()
      await dumpOf(dumper(id), { 'a.img': Buffer.from(word) })
      await done
    }
    await expectImages(restorer(id), { 'a.img': Buffer.from('four') })
  } finally {
    task.kill()
  }
})

test('a write into the dump before, as --auto-dedup does it, is refused and changes nothing (3.1)', async () => {
  const task = tree()
  const [one, two] = [fresh(), fresh()]
  try {
    const first = directoryOf('one', [[1, 3, present]])
    await task.dump('pre-dump', one, first)
    const refused = next(here.proxy, /pages-9.img would be written into/)
    await task.dump('pre-dump', two, directoryOf('two', [[1, 3, parent]]), ['--clobber', `pages-9.img=${one}`])
    await refused
    const read = await task.dump('pre-dump', fresh(), directoryOf('two', [[1, 3, parent]]))
    assert.ok(read[`pagemap-7.img=${one}`]?.equals(readFileSync(join(first, 'pagemap-7.img'))))
  } finally {
    task.kill()
  }
})

test('a client that closes at once, is silent or talks nonsense: no header of chance, no wait', async () => {
  const [silent, gone, odd] = [1, 2, 3].map(() => connectUnix(join(here.target, RESTORE_SOCKET))) as [
    never,
    never,
    never,
  ]
  closeFd(gone)
  await writeAll(odd, Buffer.alloc(16, 0xff))
  // At the proxy the words of one process are heard in their order.
  const path = JSON.stringify(join(here.source, DUMP_SOCKET))
  const others =
    `const n = require('net'); n.connect(${path}); n.connect(${path}).destroy(); ` +
    `n.connect(${path}).write('nonsense'); console.log()`
  const child = spawn(process.execPath, ['-e', others], { stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    await once(child.stdout, 'data')
    const snapshot = fresh()
    const done = sealed()
    await dumpOf(dumper(snapshot), { 'a.img': pattern(100) })
    await done
    await expectImages(restorer(snapshot), { 'a.img': pattern(100) })
  } finally {
    child.kill('SIGKILL')
    for (const socket of [silent, odd]) closeFd(socket)
  }
})

/** As a criu does, which waits where others wait before it. */
function reached(path: string): Promise<Fd> {
  return eventually(() => {
    try {
      return connectUnix(path)
    } catch (error) {
      if (String(error).includes('EWOULDBLOCK')) return undefined
      throw error
    }
  }, `a connection to ${path}`)
}

test('a client that is gone before its reply: nothing of it is used any more (use after free, 3.3)', async () => {
  const snapshot = fresh()
  const done = sealed()
  await dumpOf(dumper(snapshot), { 'a.img': pattern(100_000) })
  await done
  const asked = { name: 'a.img', snapshot_id: snapshot, open_mode: openMode.read }
  for (let time = 0; time < 20; time++) {
    const socket = await reached(join(here.target, RESTORE_SOCKET))
    await writeAll(socket, encode(localImageEntry, asked))
    closeFd(socket)
  }
  await expectImages(restorer(snapshot), { 'a.img': pattern(100_000) })
})

test('a push and then at once a pull: the list has it, and is never missing meanwhile (race, 3.3)', async () => {
  for (let time = 0; time < 10; time++) {
    const criu = dumper(fresh())
    const pushed = criu.push()
    assert.is((await within(criu.pull()))?.at(-1), criu.snapshot)
    await pushed
  }
})

test('so many that wait are turned away by name, and when they have gone others are heard', async () => {
  const own = await daemons()
  const path = join(own.target, RESTORE_SOCKET)
  const waiting: Fd[] = []
  try {
    while (waiting.length < 1025) waiting.push(await reached(path))
    await within(own.cache.says(/a client of criu --remote failed: 1024 wait at img-cache.sock already/))
    for (const socket of waiting.splice(0)) closeFd(socket)
    await dumpOf(fakeRemote(join(own.source, DUMP_SOCKET), '/tmp/after'), { 'a.img': pattern(100) })
    await within(own.cache.says(/sealed/))
    await expectImages(fakeRemote(path, '/tmp/after'), { 'a.img': pattern(100) })
  } finally {
    for (const socket of waiting) closeFd(socket)
    await own.stop()
  }
})

test('a restore from a pid namespace that the cache cannot see ends with its FINISH', async () => {
  const target = join(here.folder, `hidden-${++count}`)
  const cache = start('unshare', [
    '--pid',
    '--fork',
    '--mount-proc',
    '--kill-child',
    'cache',
    '--port',
    '0',
    '-D',
    target,
  ])
  try {
    const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
    const proxy = start('proxy', ['--port', port, '-D', `${target}-source`])
    try {
      await proxy.says(/streamer-capture/)
      await dumpOf(fakeRemote(join(`${target}-source`, DUMP_SOCKET), '/tmp/hidden'), { 'a.img': pattern(100) })
      await within(cache.says(/sealed/))
      const back = fakeRemote(join(target, RESTORE_SOCKET), '/tmp/hidden')
      await expectImages(back, { 'a.img': pattern(100) })
      await within(back.finish('restore'))
      await within(cache.says(/served: 1 images/))
    } finally {
      await proxy.stop()
    }
  } finally {
    cache.child.kill('SIGKILL')
    await cache.ended
  }
})

test('a dump by --stream is restored by --remote, whatever its -D, and the other way round', async () => {
  const done = sealed()
  await dumpAll(here.dump(), { 'core-1.img': pattern(7000) })
  await done
  const into = join(here.folder, 'restored')
  const socket = join(here.target, RESTORE_SOCKET)
  const line = ['restore', '-D', '/tmp/anything', '--remote', '--socket', socket, '--into', into]
  const ran = await criu([...line, '--read', 'core-1.img', '--read', 'missing.img'])
  assert.is(ran.code, 0, ran.stderr)
  assert.ok(readFileSync(join(into, 'core-1.img')).equals(pattern(7000)))

  const again = sealed()
  await dumpOf(dumper('some/where'), { 'core-1.img': pattern(8000) })
  await again
  const stream = here.restore()
  assert.ok((await within(stream.image('core-1.img')))?.equals(pattern(8000)))
  assert.is(await within(stream.image('missing.img')), undefined)
  stream.close()
  const refused = await criu([...line, '--read', 'core-1.img'])
  assert.is(refused.code, 0, 'the newest for its -D is that by --stream')
})

test('two dumps with one -D at a time, and an image of a child that is gone: both fail without it', async () => {
  const snapshot = fresh()
  const client = (act: string, ...end: string[]): ChildProcess => {
    const fake = JSON.stringify(join(root, 'test/support/fake-remote-criu.ts'))
    const words = JSON.stringify([join(here.source, DUMP_SOCKET), snapshot]).slice(1, -1)
    const code =
      `import { fakeRemote } from ${fake}; const criu = fakeRemote(${words}); await criu.${act}; ` +
      `console.log(); process.stdin.resume()`
    const line = ['--import', 'tsx', '--input-type=module', '-e', code]
    const [program, ...args] = [...end, process.execPath, ...line] as [string, ...string[]]
    return spawn(program, args, { cwd: root, stdio: ['pipe', 'pipe', 'ignore'] })
  }
  const criu = [1, 2].map(() => client('push().then(() => criu.pull())'))
  try {
    await within(Promise.all(criu.map(({ stdout }) => once(stdout as Readable, 'data'))))
    const failed = next(here.proxy, /which two dumps at a time have as their -D[\s\S]*which two dumps at a time/)
    client("write('netdev-9.img', Buffer.alloc(5))", 'sh', '-c', '"$@" < /dev/null &', 'sh')
    await failed
  } finally {
    for (const process of criu) process.kill('SIGKILL')
  }
})

test('SIGTERM before the first image: no proxy waits for it', async () => {
  const own = await daemons()
  try {
    const from = fakeRemote(join(own.source, DUMP_SOCKET), '/tmp/never')
    await from.push()
    assert.equal(await within(from.pull()), ['/tmp/never'])
    assert.is((await within(own.proxy.stop(), 'the end of the proxy', 10_000)).code, 143)
  } finally {
    await own.stop()
  }
})

test('the recorded migration is answered as it was, word for word', async () => {
  const own = await daemons()
  const task = spawn('sleep', ['1000'], { stdio: 'ignore' })
  try {
    const text = gunzipSync(readFileSync(join(fixtures, 'remote', 'migration.talk.gz'))).toString()
    const parts = text.split(/^criu /m).slice(1)
    assert.is(parts.length, 4)
    for (const [at, words] of parts.entries()) {
      const [head = '', ...said] = words.trim().split('\n')
      const file = join(here.folder, `talk-${at}`)
      writeFileSync(file, `${said.join('\n')}\n`)
      const [action = ''] = head.split(' ')
      const socket = action === 'restore' ? join(own.target, RESTORE_SOCKET) : join(own.source, DUMP_SOCKET)
      if (action === 'restore') await within(own.proxy.says(/handed over/))
      const directory = action === 'restore' ? '/tmp/remote-3' : here.folder
      const ran = await criu([
        action,
        '-t',
        String(task.pid),
        '-D',
        directory,
        '--remote',
        '--socket',
        socket,
        '--replay',
        file,
      ])
      assert.is(ran.code, 0, `${head}: ${ran.stderr}`)
    }
    assert.match(own.proxy.stderr(), /round 2: 1 pages/)
  } finally {
    task.kill('SIGKILL')
    await own.stop()
  }
})

test.after(async () => {
  await here.stop()
})
test.run()
