/** Chains sent to a cache in rounds, and taken out of it as one. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { askCache } from '../../lib/cache/admin.ts'
import { flattenDirectory } from '../../lib/commands/flatten.ts'
import { SERVE_SOCKET } from '../../lib/criu/serve.ts'
import { PAGE_BYTES } from '../../lib/format/pagemap.ts'
import { rejectsFault } from '../expect.ts'
import { chains, splitDump } from '../support/chains.ts'
import { startCache } from '../support/daemons.ts'
import { fakeRestore } from '../support/fake-criu.ts'
import { inventory, sendChain, sendPart, token } from '../support/rounds.ts'
import { fixtures, run, statusIs, temporary } from '../support/run.ts'

const test = suite('scripts/chains')

async function withCache(
  options: string[],
  body: (cache: Awaited<ReturnType<typeof startCache>> & { path: string }) => Promise<void>,
) {
  const { path, remove } = temporary()
  const started = await startCache(join(path, 'target'), options)
  try {
    await body({ ...started, path })
  } finally {
    await started.cache.stop()
    remove()
  }
}

/** What the directory command makes of it is what the cache has. */
async function same(flat: string, last: string, found: (name: string) => Promise<Buffer | undefined>): Promise<void> {
  await flattenDirectory(last, flat, { report: () => {}, signal: new AbortController().signal })
  const names = readdirSync(flat)
  assert.ok(names.length > 5)
  for (const name of names) assert.ok((await found(name))?.equals(readFileSync(join(flat, name))), name)
}

test('three pre-dumps and a dump by each CRIU: pulled into a directory, and served to a restore', () =>
  withCache([], async ({ port, cache, path }) => {
    for (const { criu, directories } of chains()) {
      await sendChain(port, criu, directories)
      const sealed = [1, 2, 3].map((round) => `round ${round} of snapshot ${criu} sealed[^]*`)
      await cache.says(new RegExp(`${sealed.join('')}: snapshot ${criu} sealed`))
      const pulled = join(path, criu)
      const from = ['--from', `127.0.0.1:${port}`, '--snapshot', criu]
      const ran = await run('restore-from-socket', [...from, '--to-dir', pulled])
      assert.is(ran.code, 0, ran.stderr)
      const last = directories.at(-1) as string
      await same(join(path, `flat-${criu}`), last, async (name) => readFileSync(join(pulled, name)))
      const images = readdirSync(last).filter((name) => name.endsWith('.img'))
      assert.equal(readdirSync(pulled).sort(), images.sort())
      // The newest.
      const restore = fakeRestore(join(path, 'target', SERVE_SOCKET))
      for (const name of images) assert.ok((await restore.image(name))?.equals(readFileSync(join(pulled, name))), name)
      restore.close()
      await cache.says(new RegExp(`snapshot ${criu} served: [^]*snapshot ${criu} served: `))
    }
  }))

/** Bytes in pages that are not zeros. */
function written(directory: string): number {
  const images = readdirSync(directory).filter((name) => name.startsWith('pages-'))
  const bytes = Buffer.concat(images.map((name) => readFileSync(join(directory, name))))
  const starts = Array.from({ length: bytes.length / PAGE_BYTES }, (_, page) => page * PAGE_BYTES)
  const zeros = Buffer.alloc(PAGE_BYTES)
  return starts.filter((at) => !bytes.subarray(at, at + PAGE_BYTES).equals(zeros)).length * PAGE_BYTES
}

test('rounds that leave out what the cache has: every page is there when the chain that it is of has gone', () =>
  withCache(['--dedup'], async ({ port, path }) => {
    const target = join(path, 'target')
    for (const { criu, directories } of chains()) {
      const last = directories.at(-1) as string
      await sendChain(port, 'donor', directories, undefined, true)
      const spared = await sendChain(port, criu, directories, undefined, true)
      assert.is(spared.at(-1), written(last))
      await askCache(target, { ls: false, rm: 'donor' })
      // Others write where its pages were.
      await sendPart(port, 'other', directories[0] as string, { under: 0, last: false, token })
      const pulled = join(path, criu)
      const ran = await run('restore-from-socket', [
        '--from',
        `127.0.0.1:${port}`,
        '--snapshot',
        criu,
        '--to-dir',
        pulled,
      ])
      assert.is(ran.code, 0, ran.stderr)
      await same(join(path, `flat-${criu}`), last, async (name) => readFileSync(join(pulled, name)))
      for (const rm of [criu, 'other']) await askCache(target, { ls: false, rm })
      assert.equal(await askCache(target, { ls: true }), { type: 'listed', total: 0, holdings: [] })
    }
  }))

test('eight layers of a full dump, with pages of all of them', () =>
  withCache([], async ({ port, path }) => {
    const last = splitDump(
      join(fixtures, 'images'),
      join(path, 'rounds'),
      ['4.2', '4.1', '4.2', '4.1', '4.1', '4.2', '4.1', '4.2'],
      3,
    )
    const directories = Array.from({ length: 8 }, (_, round) => join(path, 'rounds', `${round + 1}`))
    assert.is(directories.at(-1), last)
    await sendChain(port, 'app', directories)
    const restore = fakeRestore(join(path, 'target', SERVE_SOCKET))
    await same(join(path, 'flat'), last, (name) => restore.image(name))
    restore.close()
  }))

test('the last is handed over when all pages were found, and not before', () =>
  withCache([], async ({ port, path, cache }) => {
    const last = splitDump(join(fixtures, 'images'), join(path, 'rounds'), ['4.2', '4.1'])
    const first = join(path, 'rounds', '1')
    await sendPart(port, 'app', first, { under: 0, last: false, token })
    // Refused before it is a part of the chain, which stays.
    await rejectsFault('REFUSED', sendPart(port, 'app', first, { under: 1, last: false, token }, 'sealed'))
    const lost = await rejectsFault('MISSING', sendPart(port, 'b', last, { under: 0, last: true, token }, 'sealed'))
    assert.match(lost.message, /^pagemap-18177\.img: the page at 0x[0-9a-f]+ is said to be in a round before/)
    await sendPart(port, 'app', last, { under: 1, last: true, token }, 'sealed')
    await cache.says(/snapshot app handed over: the source is gone, the cache keeps its images/)
    const restore = fakeRestore(join(path, 'target', SERVE_SOCKET))
    await same(join(path, 'flat'), last, (name) => restore.image(name))
    restore.close()
  }))

test('no round can be had; another owner, a round too many, a plain snapshot are refused; failure ends the chain', () =>
  withCache(['--timeout', '1'], async ({ port, path, cache }) => {
    const last = splitDump(join(fixtures, 'images'), join(path, 'rounds'), ['4.2', '4.1', '4.2'])
    const [first = '', second = ''] = ['1', '2'].map((round) => join(path, 'rounds', round))
    await sendPart(port, 'app', first, { under: 0, last: false, token })
    const get = await run('restore-from-socket', [
      '--from',
      `127.0.0.1:${port}`,
      '--snapshot',
      'app',
      '--timeout',
      '1',
      '--to-dir',
      join(path, 'a'),
    ])
    assert.match(get.stderr, /no snapshot app was sealed/)
    const stranger = Buffer.alloc(16, 1)
    assert.is(
      (await rejectsFault('MISSING', sendPart(port, 'app', second, { under: 1, last: true, token: stranger }))).message,
      'no chain app of 1 round is here',
    )
    await rejectsFault('EXISTS', sendPart(port, 'app', first, { under: 0, last: false, token: stranger }))
    await rejectsFault('MISSING', sendPart(port, 'app', second, { under: 2, last: false, token }))
    const plain = await run('bash', [
      '-c',
      `dump-to-stdout --from-dir ${join(fixtures, 'images')} --snapshot app > ${join(path, 'app.img')}`,
    ])
    assert.is(plain.code, 0, plain.stderr)
    const heard = await new Promise<Buffer>((resolve) => {
      const socket = connect(Number(port), '127.0.0.1')
      const parts: Buffer[] = []
      socket.on('data', (bytes: Buffer) => parts.push(bytes)).on('close', () => resolve(Buffer.concat(parts)))
      socket.end(readFileSync(join(path, 'app.img')))
    })
    assert.match(heard.toString('latin1'), 'an unfinished chain app of another sender is here')
    // All that left the chain as it was.
    await sendPart(port, 'app', second, { under: 1, last: false, token })
    mkdirSync(join(path, 'bad'))
    writeFileSync(join(path, 'bad', 'inventory.img'), inventory)
    writeFileSync(join(path, 'bad', 'pagemap-1.img'), 'no pagemap')
    const bad = await rejectsFault('REFUSED', sendPart(port, 'app', join(path, 'bad'), { under: 2, last: true, token }))
    assert.is(bad.message, 'pagemap-1.img: not a pagemap image of CRIU')
    await rejectsFault('MISSING', sendPart(port, 'app', last, { under: 2, last: true, token }))
    // The refusal is sent before the memory is given back.
    await statusIs(cache, /snapshots: 0, chains: 0, memory: 0 B of/)
    await sendChain(port, 'app', [first, second, last])
    await cache.says(/ snapshot app sealed: \d+ images/)
  }))

test.run()
