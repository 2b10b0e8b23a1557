/** Pages that are not sent again: a sender and a receiver that offers, whatever either of them says. */

import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { digest } from '../../lib/format/digest.ts'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import { imageName, snapshotId } from '../../lib/format/names.ts'
import { DIGEST_WORDS, MOST_OFFERED, MOST_SAME, weakDigest } from '../../lib/format/page-digest.ts'
import { PAGE_BYTES } from '../../lib/format/pagemap.ts'
import type { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { Snapshots } from '../../lib/store/snapshots.ts'
import type { Compress } from '../../lib/stream/compress.ts'
import { DedupSender } from '../../lib/stream/dedup-send.ts'
import { frameReader, frameWriter } from '../../lib/stream/frames.ts'
import type { Outlet } from '../../lib/stream/link.ts'
import { receiveSnapshot } from '../../lib/stream/receive.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import { defer } from '../../lib/stream/wait.ts'
import { rejectsFault, throwsFault } from '../expect.ts'
import { anyFrame } from '../support/any-frame.ts'
import { bytesOf, entry, type Given, image, inletOf, pipeLinks, sourceOf, stream } from './snapshots.ts'

const test = suite('stream/dedup-send')

const page = (n: number): Buffer => (n < 0 ? Buffer.alloc(PAGE_BYTES) : bytesOf(`page ${n}`, PAGE_BYTES))
const pages = (numbers: readonly number[]): Buffer => Buffer.concat(numbers.map(page))
const count = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, n) => from + n)

function pagesImage(number: number, bytes: Uint8Array, kind: Given['kind'], step = 65536): Given {
  return { name: `pages-${number}.img`, bytes, kind, step }
}

/**
 * Sends to a shelf as a proxy does to a cache: what the receiver answers goes to `known`. Returns the bytes on the
 * link.
 */
async function send(
  shelf: Snapshots,
  word: string,
  images: readonly Given[],
  compress?: Compress,
): Promise<{ bytes: number; known: DedupSender }> {
  const { from, to } = pipeLinks()
  let bytes = 0
  const counting: Outlet = {
    ...from.outlet,
    send(some, more) {
      bytes += some.length
      return from.outlet.send(some, more)
    },
  }
  const id = snapshotId(word)
  const known = new DedupSender(() => {})
  const arriving = shelf.receive(id)
  const reader = frameReader(to.inlet)
  const receiving = (async () => {
    assert.equal(await reader.expect(anyFrame), { type: 'snapshot', id })
    return receiveSnapshot(reader, arriving.sink, {
      offer: arriving.offer,
      async onRecall(first) {
        const said = await arriving.offer?.recall(first)
        if (said !== undefined) known.take({ type: 'recalled', offers: true, ...said })
      },
    })
  })()
  // CRIU waits at pre-dump until the answers are here.
  const source = sourceOf(images)
  const waiting = {
    ...source,
    images: (async function* () {
      await known.ready
      yield* source.images
    })(),
  }
  try {
    await Promise.all([sendSnapshot(frameWriter(counting), id, waiting, { known, compress }), receiving])
    await arriving.complete()
    arriving.seal()
  } finally {
    arriving.drop()
    from.destroy()
    to.destroy()
  }
  return { bytes, known }
}

function stored(shelf: Snapshots, word: string): MemorySnapshot['images'] {
  const found = shelf.all.find(({ id }) => id === word)
  if (found === undefined) throw new Error(`no ${word}`)
  return (found.sink as MemorySnapshot).images
}

function content(shelf: Snapshots, word: string, name: string): Buffer {
  return Buffer.concat([...(stored(shelf, word).get(imageName(name))?.pieces ?? [])].map(({ window }) => window))
}

const inventory = image('inventory.img', 60)

for (const compress of [undefined, 'lz4', 'zstd', 'auto'] as const) {
  for (const kind of ['pipe', 'pieces'] as const) {
    test(`a replica out of ${kind}, compressed: ${compress}: what is there is not sent, every byte comes`, async () => {
      const pool = new Pool(2 ** 28)
      const shelf = new Snapshots(pool, { dedup: true })
      const first = pages([...count(0, 600), ...count(0, 0)])
      await send(shelf, 'first', [pagesImage(1, first, kind), image('core-1.img', 900, kind, 7), inventory], compress)
      // Its own are 600 to 619; half a page at the end; and an image that begins off a page's border.
      const second = Buffer.concat([
        pages([-1, ...count(100, 500), ...count(600, 620), -1, -1, ...count(0, 50)]),
        page(3).subarray(0, 99),
      ])
      const sent = await send(
        shelf,
        'second',
        [pagesImage(1, second, kind), pagesImage(2, first, kind, 98_304), inventory],
        compress,
      )
      assert.ok(content(shelf, 'second', 'pages-1.img').equals(second))
      assert.ok(content(shelf, 'second', 'pages-2.img').equals(first))
      assert.ok(sent.bytes < 60 * PAGE_BYTES, `${sent.bytes} bytes`)
      assert.is(sent.known.spared, (400 + 50 + 600) * PAGE_BYTES)
      shelf.remove(snapshotId('first'))
      assert.ok(content(shelf, 'second', 'pages-2.img').equals(first))
      shelf.remove(snapshotId('second'))
      assert.equal([pool.used, shelf.all], [0, []])
    })
  }
}

test('of a tree of equal processes the third copy is not sent', async () => {
  const shelf = new Snapshots(new Pool(2 ** 28), { dedup: true })
  const own = pages(count(0, 300))
  const images = [1, 2, 3, 4].map((n) => pagesImage(n, own, 'pieces'))
  const { bytes, known } = await send(shelf, 'tree', [...images, inventory])
  assert.is(known.spared, 600 * PAGE_BYTES)
  assert.ok(bytes < 640 * PAGE_BYTES, `${bytes} bytes`)
  for (const { name } of images) assert.ok(content(shelf, 'tree', name).equals(own))
})

test('snapshots of random pages arrive as they are', async () => {
  const pool = new Pool(2 ** 29)
  const numbers = fc.array(fc.integer({ min: -1, max: 30 }), { maxLength: 60 })
  let spared = 0
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(numbers, numbers), { minLength: 2, maxLength: 4 }), async (plans) => {
      const shelf = new Snapshots(pool, { dedup: true })
      for (const [index, [one, two]] of plans.entries()) {
        const images = [pagesImage(1, pages(one), 'pipe', 5000), pagesImage(2, pages(two), 'pipe', 70_000), inventory]
        spared += (await send(shelf, `s${index}`, images)).known.spared
        if (index > 1) shelf.remove(snapshotId(`s${index - 2}`))
      }
      for (const [index, [one, two]] of plans.entries()) {
        if (index + 2 < plans.length) continue
        assert.ok(content(shelf, `s${index}`, 'pages-1.img').equals(pages(one)))
        assert.ok(content(shelf, `s${index}`, 'pages-2.img').equals(pages(two)))
        shelf.remove(snapshotId(`s${index}`))
      }
      assert.is(pool.used, 0)
    }),
    { numRuns: 30 },
  )
  assert.ok(spared > 100 * PAGE_BYTES, `${spared} bytes were spared`)
})

const digestsOf = (pages: number): Uint32Array => new Uint32Array(pages * DIGEST_WORDS).fill(7)
const answer = (total: number, pages: number, offers = true): Extract<Frame, { type: 'recalled' }> => ({
  ...{ type: 'recalled', offers, total, digests: digestsOf(pages) },
})

test('an offer that cannot be is refused; garbage in one that can be does no harm', () => {
  const asked = (): DedupSender => {
    const known = new DedupSender(() => {})
    known.ask(() => {})
    return known
  }
  throwsFault('FORMAT', () => new DedupSender(() => {}).take(answer(0, 0)), 'nobody asked')
  for (const [total, given] of [
    [3, 2],
    [2, 3],
    [0, 1],
    [40_000, 40_000],
  ] as const) {
    throwsFault('FORMAT', () => asked().take(answer(total, given)), `${given} of ${total}`)
  }
  const twice = asked()
  twice.take(answer(1, 1))
  throwsFault('FORMAT', () => twice.take(answer(1, 1)))
  const changing = asked()
  changing.take(answer(40_000, 32_768))
  throwsFault('FORMAT', () => changing.take(answer(50_000, 10_000)))
  const garbage = asked()
  garbage.take(answer(5000, 5000))
  assert.is(garbage.find(page(1), 1, 0), undefined)
  let unoffered = 0
  const none = new DedupSender(() => unoffered++)
  none.ask(() => {})
  none.take(answer(0, 0, false))
  assert.equal([none.offers, unoffered], [false, 1])
})

test('a sender that names what is not there is refused, and the images with it', async () => {
  const pool = new Pool(2 ** 28)
  const shelf = new Snapshots(pool, { dedup: true })
  await send(shelf, 'donor', [pagesImage(1, pages([1, 2, 3]), 'pieces'), inventory])
  const used = pool.used
  const named = { type: 'image', channel: 1, name: imageName('pages-1.img') } as const
  const same = (more: Partial<Extract<Frame, { type: 'same' }>>): Frame => ({
    ...{ type: 'same', channel: 1, offset: 0, source: 0, first: 0, pages: 1, ...more },
  })
  const other = { ...named, name: imageName('core-1.img') }
  const byte: [Frame, Uint8Array] = [{ type: 'data', channel: 1, offset: 0, length: 1 }, Buffer.alloc(1)]
  const cases: [string, boolean, ...(Frame | [Frame, Uint8Array])[]][] = [
    ['before it was offered', false, named, same({})],
    ['one too many', true, named, same({ pages: 4 })],
    ['behind the last', true, named, same({ first: 3 })],
    ['far behind', true, named, same({ first: 2 ** 36 })],
    ['of an image that is not there', true, named, same({ source: 2 })],
    ['of itself, before anything came', true, named, same({ source: 1 })],
    ['of itself, one too many', true, named, same({}), same({ source: 1, first: 1, offset: PAGE_BYTES })],
    ['in an image of something else', true, other, same({})],
    ['between pages', true, named, byte, same({ offset: 1 })],
    ['where the image does not go on', true, named, same({ offset: PAGE_BYTES })],
  ]
  for (const [what, recalls, ...frames] of cases) {
    const arriving = shelf.receive(snapshotId('bad'))
    if (recalls) assert.is((await arriving.offer?.recall(0))?.total, 3)
    const bytes = Buffer.concat(
      frames.flatMap((one) => (Array.isArray(one) ? [encodeFrame(one[0]), one[1]] : [encodeFrame(one)])),
    )
    const reader = frameReader(inletOf(bytes), { started: true })
    await rejectsFault('FORMAT', receiveSnapshot(reader, arriving.sink, { offer: arriving.offer }), what)
    arriving.drop()
  }
  // One that offers nothing takes nothing.
  const plain = new Snapshots(new Pool(2 ** 26)).receive(snapshotId('x'))
  const reader = frameReader(inletOf(stream(named, same({}))))
  await rejectsFault('FORMAT', receiveSnapshot(reader, plain.sink))
  plain.drop()
  assert.is(shelf.all.length, 1)
  shelf.remove(snapshotId('donor'))
  assert.ok(used > 0)
  assert.is(pool.used, 0)
})

test('who asks again and again and reads no answer makes the receiver hold one', async () => {
  const shelf = new Snapshots(new Pool(2 ** 26), { dedup: true })
  const arriving = shelf.receive(snapshotId('greedy'))
  const recall = (offset: number): Frame => ({ type: 'recall', offset })
  const reader = frameReader(inletOf(stream(recall(0), recall(1), recall(2))))
  const asked: number[] = []
  const { promise, resolve } = defer<void>()
  const onRecall = (from: number): Promise<void> => {
    asked.push(from)
    return promise
  }
  const receiving = rejectsFault('TRUNCATED', receiveSnapshot(reader, arriving.sink, { onRecall }))
  for (let turns = 0; turns < 20; turns++) await turn()
  assert.equal(asked, [0])
  resolve()
  await receiving
  assert.equal(asked, [0, 1, 2])
  arriving.drop()
})

test('a page that is not what the sender means is found by the digest of the image', async () => {
  const shelf = new Snapshots(new Pool(2 ** 28), { dedup: true })
  await send(shelf, 'donor', [pagesImage(1, pages([1, 2, 3]), 'pieces'), inventory])
  const arriving = shelf.receive(snapshotId('wrong'))
  await arriving.offer?.recall(0)
  const meant = digest()
  meant.update(page(2))
  const frames: Frame[] = [
    { type: 'image', channel: 1, name: imageName('pages-1.img') },
    { type: 'same', channel: 1, offset: 0, source: 0, first: 0, pages: 1 },
    { type: 'imageEnd', channel: 1, size: PAGE_BYTES, digest: meant.finish() },
  ]
  const reader = frameReader(inletOf(Buffer.concat(frames.map((frame) => encodeFrame(frame)))), { started: true })
  await rejectsFault('DIGEST', receiveSnapshot(reader, arriving.sink, { offer: arriving.offer }))
  arriving.drop()
  assert.ok(entry('x', page(1)).digest !== entry('x', page(2)).digest)
})

test('pages of one weak digest are two pages', async () => {
  const seen = new Map<number, number>()
  const made = (n: number): Buffer => {
    const bytes = Buffer.alloc(PAGE_BYTES, 1)
    bytes.writeUInt32LE(n)
    return bytes
  }
  let pair: [number, number] | undefined
  for (let n = 0; pair === undefined; n++) {
    const weak = weakDigest(made(n))
    const other = seen.get(weak)
    if (other !== undefined) pair = [other, n]
    seen.set(weak, n)
  }
  const shelf = new Snapshots(new Pool(2 ** 28), { dedup: true })
  await send(shelf, 'one', [pagesImage(1, made(pair[0]), 'pieces'), inventory])
  const { known } = await send(shelf, 'other', [pagesImage(1, made(pair[1]), 'pieces'), inventory])
  assert.is(known.spared, 0)
  assert.ok(content(shelf, 'other', 'pages-1.img').equals(made(pair[1])))
})

test('limits', () => {
  assert.equal([MOST_SAME * PAGE_BYTES, MOST_OFFERED * PAGE_BYTES], [2 ** 20, 2 ** 32])
})

test.run()
