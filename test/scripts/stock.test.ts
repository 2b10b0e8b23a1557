/** One cache for many: what it holds is listed, dropped and bounded, and does not mix. */
import { readFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { askCache } from '../../lib/cache/admin.ts'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import type { Holding } from '../../lib/format/holdings.ts'
import { imageName, snapshotId } from '../../lib/format/names.ts'
import { PAGE_BYTES, pageFlag, readPagemap } from '../../lib/format/pagemap.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { defer } from '../../lib/stream/wait.ts'
import { rejectsFault, within } from '../expect.ts'
import { startCache, startProxy } from '../support/daemons.ts'
import { dumpAll, fakeDump } from '../support/fake-criu.ts'
import { inventory, pageOf, part, putInto, sendChain, sendPart, token } from '../support/rounds.ts'
import { eventually, type Ran, root, run, statusIs, temporary } from '../support/run.ts'

const test = suite('scripts/stock')

const { parent, present } = pageFlag

interface Scene extends Awaited<ReturnType<typeof startCache>> {
  path: string
  ask(...options: string[]): Promise<Ran>
  /** The list without ages, of what shares nothing. */
  held(): Promise<Omit<Holding, 'seconds' | 'shared'>[]>
}

async function withCache(options: string[], body: (scene: Scene) => Promise<void>): Promise<void> {
  const { path, remove } = temporary()
  const target = join(path, 'target')
  const started = await startCache(target, options)
  const ask = (...more: string[]): Promise<Ran> => run('cache', ['-D', target, ...more])
  try {
    await body({
      ...started,
      path,
      ask,
      async held() {
        const listed = await askCache(target, { ls: true })
        assert.ok(typeof listed === 'object')
        return listed.holdings.map(({ seconds, shared, ...rest }) => {
          assert.ok(seconds < 60)
          assert.is(shared, 0)
          return rest
        })
      },
    })
  } finally {
    await started.cache.stop()
    remove()
  }
}

/** Calls of what it returns wait until there are so many. */
function meeting(count: number): () => Promise<void> {
  const all = defer<void>()
  let here = 0
  return () => {
    if (++here === count) all.resolve()
    return all.promise
  }
}

const PAGES = 700

test('four chains and four snapshots arrive at once, each over connections of its own: none has bytes of another', () =>
  withCache([], async ({ port, path, held }) => {
    const names = [1, 2, 3, 4]
    const rounds = (chain: number): string[] => {
      const word = `chain-${chain}`
      const at = (round: number): string => join(path, `${word}.${round}`)
      const middle = part(`${word} again`, [
        [0, 10 * chain, present],
        [10 * chain, PAGES - 10 * chain, parent],
      ])
      const last = { ...part(word, [[0, PAGES, parent]]), 'inventory.img': inventory }
      return [part(word, [[0, PAGES, present]]), middle, last].map((images, round) => putInto(at(round), images))
    }
    const plain = (number: number): string =>
      putInto(join(path, `plain-${number}.0`), {
        ...part(`plain-${number}`, [[0, PAGES, present]]),
        'inventory.img': inventory,
      })
    // Nobody has a second image out before all have the first.
    const first = meeting(8)
    const once = (): (() => Promise<void>) => {
      let times = 0
      return async () => (times++ === 0 ? first() : undefined)
    }
    const sent = Promise.all([
      ...names.map((chain) => sendChain(port, `chain-${chain}`, rounds(chain), once())),
      ...names.map((number) => sendPart(port, `plain-${number}`, plain(number), undefined, undefined, once())),
    ])
    await sent
    assert.equal(
      (await held()).map(({ id, state }) => `${id} ${state}`).sort(),
      ['chain', 'plain'].flatMap((kind) => names.map((number) => `${kind}-${number} sealed`)),
    )
    for (const id of ['chain', 'plain'].flatMap((kind) => names.map((number) => `${kind}-${number}`))) {
      const out = join(path, `out-${id}`)
      const ran = await run('restore-from-socket', ['--from', `127.0.0.1:${port}`, '--snapshot', id, '--to-dir', out])
      assert.is(ran.code, 0, ran.stderr)
      const { pagesId } = readPagemap([readFileSync(join(out, 'pagemap-7.img'))])
      const pages = readFileSync(join(out, `pages-${pagesId}.img`))
      assert.is(pages.length, PAGES * PAGE_BYTES)
      const again = id.startsWith('chain') ? 10 * Number(id.at(-1)) : 0
      for (let page = 0; page < PAGES; page++) {
        const found = pages.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        assert.ok(found.equals(pageOf(page < again ? `${id} again` : id, page)), `${id}, page ${page}`)
      }
    }
  }))

test('memory that is full refuses one more snapshot, and its sender learns why; the others go on', () =>
  withCache(['--max-memory', '16M'], async ({ port, path, cache, held }) => {
    const small = putInto(join(path, 'small'), { ...part('small', [[0, 900, present]]), 'inventory.img': inventory })
    const full = defer<void>()
    let times = 0
    const going = sendPart(port, 'small', small, undefined, undefined, async () => {
      if (times++ > 0) return
      await full.promise
    })
    await eventually(() => (times > 0 ? true : undefined), 'the first image')
    const proxy = await startProxy(join(path, 'source'), port, ['--snapshot', 'big', '--timeout', '20'])
    const dump = fakeDump(join(path, 'source', 'streamer-capture.sock'))
    await dumpAll(dump, { 'pages-1.img': Buffer.alloc(20 * 2 ** 20, 7) }).catch(() => {})
    await proxy.says(/failed: .*the memory for images is full: [\d.]+ MiB of 16\.0 MiB/)
    await cache.says(/snapshot big failed: the memory for images is full/)
    await cache.says(/hint: raise --max-memory, or remove a snapshot: cache -D DIR --ls, and --rm ID/)
    assert.equal(
      (await held()).map(({ id, state }) => [id, state]),
      [['small', 'arriving']],
    )
    full.resolve()
    await going
    await cache.says(/snapshot small sealed/)
    await proxy.stop()
  }))

test('a list, and what is dropped by hand: a snapshot, a chain; not what arrives or is not there', () =>
  withCache([], async ({ port, path, ask, held }) => {
    const images = { ...part('a', [[0, 3, present]]), 'inventory.img': inventory }
    const directory = putInto(join(path, 'a'), images)
    assert.equal(await held(), [])
    await sendPart(port, 'web-1', directory)
    await sendPart(port, 'job', directory, { under: 0, last: false, token })
    await sendPart(port, 'job', directory, { under: 1, last: false, token })
    const { stdout, stderr, code } = await ask('--ls')
    assert.equal([code, stderr], [0, ''])
    assert.match(
      stdout.toString(),
      /^web-1 {2}sealed, 3 images {3}2\.00 MiB {2}\d s\njob {4}chain of 2 rounds {2}\S+ MiB {2}\d s\n$/,
    )
    const [web, job] = await held()
    assert.equal(web, { id: 'web-1', state: 'sealed', pinned: false, count: 3, bytes: 2 ** 21 })
    const json = JSON.parse((await ask('--ls', '--json')).stdout.toString())
    assert.equal([json.version, json.total, json.snapshots[1].rounds], [2, 2, 2])
    assert.equal([job?.id, job?.state, job?.count], ['job', 'chain', 2])

    const going = defer<void>()
    const arriving = sendPart(port, 'late', directory, undefined, undefined, () => going.promise)
    while ((await held()).length < 3);
    const refused = await ask('--rm', 'late')
    assert.equal(
      [refused.code, refused.stderr],
      [1, 'cache: error: snapshot late still arrives: its source can end that\n'],
    )
    const round = net.connect(Number(port), '127.0.0.1')
    const frames: Frame[] = [
      { type: 'snapshot', id: snapshotId('silent') },
      { type: 'layer', under: 0, last: false, token },
      { type: 'image', channel: 1, name: imageName('pages-1.img') },
    ]
    round.write(Buffer.concat([encodePreamble(), ...frames.map((frame) => encodeFrame(frame))]))
    round.on('error', () => {})
    while ((await held()).length < 4);
    const silent = await ask('--rm', 'silent')
    assert.equal([silent.code, silent.stderr], [0, ''], 'the tasks of a round run')
    assert.is((await held()).length, 3)
    round.destroy()

    const unknown = await ask('--rm', 'nobody')
    assert.equal([unknown.code, unknown.stderr], [1, 'cache: error: no snapshot nobody is here\n'])
    for (const id of ['web-1', 'job']) {
      const removed = await ask('--rm', id)
      assert.equal([removed.code, removed.stderr, removed.stdout.length], [0, '', 0])
    }
    await rejectsFault('MISSING', sendPart(port, 'job', directory, { under: 2, last: true, token }))
    going.resolve()
    await arriving
    assert.equal(
      (await held()).map(({ id, state }) => [id, state]),
      [['late', 'sealed']],
    )
    const nobody = await run('cache', ['-D', path, '--ls'])
    assert.is(nobody.code, 1)
    assert.match(nobody.stderr, /^cache: error: no cache runs in /)
  }))

test('what is pinned is not dropped, by hand or when memory runs out, until it is pinned no more', () =>
  withCache(['--max-memory', '16M', '--timeout', '1'], async ({ port, path, ask, held, cache }) => {
    const images = { ...part('a', [[0, 3, present]]), 'inventory.img': inventory }
    const directory = putInto(join(path, 'a'), images)
    await sendPart(port, 'job', directory, { under: 0, last: false, token })
    await sendPart(port, 'web-1', directory)
    for (const id of ['job', 'web-1']) {
      const pinned = await ask('--pin', id)
      assert.equal([pinned.code, pinned.stderr, pinned.stdout.length], [0, '', 0])
      const refused = await ask('--rm', id)
      assert.is(refused.code, 1)
      assert.match(refused.stderr, new RegExp(`^cache: error: snapshot ${id} is pinned: cache -D .* --unpin ${id}\n$`))
    }
    assert.equal(
      (await held()).map(({ id, state, pinned }) => [id, state, pinned]),
      [
        ['job', 'chain', true],
        ['web-1', 'sealed', true],
      ],
    )
    assert.match(
      (await ask('--ls')).stdout.toString(),
      /^job {4}chain of 1 round, pinned .*\nweb-1 {2}sealed, 3 images, pinned /,
    )
    for (const option of ['--pin', '--unpin']) {
      const unknown = await ask(option, 'nobody')
      assert.equal([unknown.code, unknown.stderr], [1, 'cache: error: no snapshot nobody is here\n'])
    }
    await setTimeout(1100)
    const large = putInto(join(path, 'large'), { ...part('large', [[0, 3000, present]]), 'inventory.img': inventory })
    await rejectsFault('MEMORY', sendPart(port, 'large', large))
    assert.is((await held()).length, 2)
    assert.is((await ask('--unpin', 'job')).code, 0)
    await sendPart(port, 'large', large)
    await within(cache.says(/the unfinished chain job failed/), 'a word about job')
    assert.is((await ask('--unpin', 'web-1')).code, 0)
    assert.is((await ask('--rm', 'web-1')).code, 0)
    assert.equal(
      (await held()).map(({ id }) => id),
      ['large'],
    )
    await sendPart(port, 'web-1', directory)
    assert.is((await held()).at(-1)?.pinned, false, 'a pin outlives what it was of')
  }))

test('nothing is pinned in a cache that gives memory back while it restores', () =>
  withCache(['--release-early'], async ({ port, path, ask }) => {
    await sendPart(port, 'web-1', putInto(join(path, 'a'), { 'inventory.img': inventory }))
    const refused = await ask('--pin', 'web-1')
    assert.equal(
      [refused.code, refused.stderr],
      [1, 'cache: error: a cache with --release-early keeps nothing that is restored\n'],
    )
  }))

test('with --release-early a snapshot made with -R is restored as often as before, and not what took its place', () =>
  withCache(['--release-early', '--snapshot', 'copy'], async ({ port, path, cache, held }) => {
    const target = join(path, 'target')
    const sent = (word: string): string =>
      putInto(join(path, word), { ...part(word, [[0, 2 * PAGES, present]]), 'inventory.img': inventory })
    await sendPart(port, 'copy', sent('copy'), undefined, 'sealed', undefined, undefined, 'copy')
    const before = await held()
    const program = join(root, 'test', 'support', 'restore-image.ts')
    const args = ['--import', 'tsx', program, target, 'pages-1.img', join(target, 'post-restore')]
    for (const word of ['another', 'a third']) {
      const { stdout, stderr } = await run(process.execPath, args)
      assert.is(stdout.length, 2 * PAGES * PAGE_BYTES, stderr)
      for (const page of [0, PAGES, 2 * PAGES - 1])
        assert.ok(stdout.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES).equals(pageOf('copy', page)), `${page}`)
      await cache.says(/snapshot copy served: 1 images/)
      await sendPart(port, word.replace(' ', '-'), sent(word))
    }
    assert.equal((await held())[0], before[0])
  }))

test('a client over TCP can neither list, nor drop, nor pin', () =>
  withCache([], async ({ port, path, held }) => {
    await sendPart(port, 'web-1', putInto(join(path, 'a'), { 'inventory.img': inventory }))
    for (const frame of [
      { type: 'list' },
      { type: 'remove', id: snapshotId('web-1') },
      { type: 'pin', id: snapshotId('web-1'), pinned: true },
    ] as Frame[]) {
      const socket = net.connect(Number(port), '127.0.0.1')
      socket.end(Buffer.concat([encodePreamble(), encodeFrame(frame)]))
      let heard = ''
      for await (const bytes of socket) heard += (bytes as Buffer).toString('latin1')
      assert.match(heard, `a ${frame.type} frame where none belongs`)
      assert.not.match(heard, 'web-1')
    }
    assert.is((await held()).length, 1)
  }))

test('a chain that nobody continues gives way to another snapshot, which is reported; SIGUSR1 counts chains', () =>
  withCache(['--max-memory', '8M', '--timeout', '0.3'], async ({ port, path, cache, held }) => {
    const images = { ...part('a', [[0, 900, present]]), 'inventory.img': inventory }
    const directory = putInto(join(path, 'a'), images)
    await sendPart(port, 'job', directory, { under: 0, last: false, token })
    await statusIs(cache, /snapshots: 0, chains: 1, memory: /)
    await setTimeout(400)
    const more = putInto(join(path, 'b'), { ...part('b', [[0, 1000, present]]), 'inventory.img': inventory })
    await sendPart(port, 'web-1', more)
    await cache.says(/the unfinished chain job failed: no round came for \d+\.\d s, and memory was needed/)
    assert.equal(
      (await held()).map(({ id }) => id),
      ['web-1'],
    )
  }))

test.run()
