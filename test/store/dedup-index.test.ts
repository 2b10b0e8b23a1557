/** Pages that several snapshots need, and offers to senders, in every order of coming and going. */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type ImageName, imageName, snapshotId } from '../../lib/format/names.ts'
import { DIGEST_WORDS, MOST_RECALLED, strongDigest, weakDigest } from '../../lib/format/page-digest.ts'
import { PAGE_BYTES } from '../../lib/format/pagemap.ts'
import { DedupIndex, type DedupOffer } from '../../lib/store/dedup-index.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { DIGESTS_BYTES, EXTENT, PAGES, Pool } from '../../lib/store/pool.ts'
import { Snapshots } from '../../lib/store/snapshots.ts'
import { rejectsFault, throwsFault } from '../expect.ts'
import { bytesOf } from '../stream/snapshots.ts'

const test = suite('store/dedup-index')

const pagesImage = imageName('pages-1.img')
/** A page of zeros that came as bytes. */
const written = 99
/** Page number `n` of all pages that there are. */
const page = (n: number): Buffer => (n === written ? Buffer.alloc(PAGE_BYTES) : bytesOf(`page ${n}`, PAGE_BYTES))

/** Numbers of pages that come; minus one for zeros; `[address]` for a page that is here. */
type Part = number | [address: number]

function put(sink: MemorySnapshot, parts: readonly Part[], name: ImageName = pagesImage): void {
  const writer = sink.open(name)
  for (const part of parts) {
    if (typeof part !== 'number') writer.shared?.take(part[0], 1)
    else if (part < 0) for (const _window of writer.shared?.zeros(1) ?? []);
    else {
      for (let at = 0; at < PAGE_BYTES; ) {
        const room = writer.room(PAGE_BYTES - at)
        const some = page(part).subarray(at, at + room.length)
        room.set(some)
        writer.wrote(some.length)
        at += some.length
      }
    }
  }
  writer.end({ name, size: parts.length * PAGE_BYTES, digest: 0n })
}

function content(sink: MemorySnapshot, name: ImageName = pagesImage): Buffer {
  return Buffer.concat([...(sink.images.get(name)?.pieces ?? [])].map(({ window }) => Buffer.from(window)))
}

const expected = (numbers: readonly number[]): Buffer =>
  Buffer.concat(numbers.map((n) => (n < 0 ? Buffer.alloc(PAGE_BYTES) : page(n))))

const placesOf = (sink: MemorySnapshot) => [...sink.images.values()].map(({ places = [] }) => places)

/** Addresses of the pages of an image, in order. */
function addressesOf(sink: MemorySnapshot): number[] {
  return placesOf(sink).flatMap((places) =>
    [...places].flatMap(([address, bytes]) =>
      Array.from({ length: bytes / PAGE_BYTES }, (_, index) => address + index * PAGE_BYTES),
    ),
  )
}

/** A snapshot of its own memory, with these pages. */
function snapshot(pool: Pool, parts: readonly Part[]): MemorySnapshot {
  const sink = new MemorySnapshot(pool, true)
  put(sink, parts)
  return sink
}

const orders = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
]
for (const order of orders) {
  test(`three snapshots share pages and are dropped in the order ${order.join(' ')}: each is whole until then`, () => {
    const pool = new Pool(64 * EXTENT)
    const first = snapshot(pool, [0, 1, 2, 3, -1])
    const [zero = 0, one = 0, two = 0] = addressesOf(first)
    // The third has one page of the first, and one of the second's own.
    const second = snapshot(pool, [[one], 10, [two], [one]])
    const ten = addressesOf(second)[1] as number
    const third = snapshot(pool, [[ten], [zero], -1, 20])
    const sinks = [first, second, third]
    const contents = [
      [0, 1, 2, 3, -1],
      [1, 10, 2, 1],
      [10, 0, -1, 20],
    ]
    assert.equal(
      sinks.map(({ shared }) => shared / PAGE_BYTES),
      [0, 3, 2],
    )
    const gone = new Set<number>()
    for (const index of order) {
      sinks[index]?.drop()
      gone.add(index)
      sinks.forEach((sink, at) => {
        if (!gone.has(at)) assert.ok(content(sink).equals(expected(contents[at] as number[])), `${at} after ${index}`)
      })
      assert.is(
        pool.used,
        sinks.reduce((sum, { held }) => sum + held, 0),
        'what is used is what all hold, each page once',
      )
    }
    assert.is(pool.used, 0)
    assert.equal(
      sinks.map(({ held }) => held),
      [0, 0, 0],
    )
  })
}

test('snapshots that share at random and are dropped at random stay whole, and the pool is empty at the end', () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(fc.nat(40), { minLength: 1, maxLength: 30 }), { maxLength: 6 }),
      fc.infiniteStream(fc.nat(5)),
      (plans, choice) => {
        const pool = new Pool(64 * EXTENT)
        const here = new Map<number, { sink: MemorySnapshot; numbers: number[] }>()
        const drop = (index: number): void => {
          here.get(index)?.sink.drop()
          here.delete(index)
        }
        plans.forEach((numbers, index) => {
          // Any snapshot that has the page shares it, this one, too.
          const known = new Map<number, number>()
          for (const { sink, numbers } of here.values())
            for (const [at, address] of addressesOf(sink).entries()) known.set(numbers[at] as number, address)
          const sink = new MemorySnapshot(pool, true)
          put(
            sink,
            numbers.map((n): Part => (known.has(n) ? [known.get(n) as number] : n)),
          )
          here.set(index, { sink, numbers })
          if ((choice.next().value as number) % 2 === 0) drop(choice.next().value as number)
          for (const { sink, numbers } of here.values()) assert.ok(content(sink).equals(expected(numbers)))
        })
        for (const index of [...here.keys()]) drop(index)
        assert.is(pool.used, 0)
      },
    ),
    { numRuns: 60 },
  )
})

test('--release-early gives back what nobody else needs, and no more', () => {
  const pool = new Pool(64 * EXTENT)
  const first = snapshot(pool, [0, 1, 2, 3])
  const [, one = 0] = addressesOf(first)
  const second = snapshot(pool, [[one], [one], 9])
  for (const piece of first.images.get(pagesImage)?.pieces ?? []) first.release(piece)
  for (const piece of first.images.get(pagesImage)?.pieces ?? []) first.release(piece)
  assert.ok(content(second).equals(expected([1, 1, 9])))
  assert.ok(content(first).equals(Buffer.concat([Buffer.alloc(PAGE_BYTES), page(1), Buffer.alloc(2 * PAGE_BYTES)])))
  first.drop()
  assert.ok(content(second).equals(expected([1, 1, 9])))
  second.drop()
  assert.is(pool.used, 0)
})

async function digests(offer: DedupOffer): Promise<Uint32Array> {
  const words: number[] = []
  for (let from = 0; ; ) {
    const { total, digests } = await offer.recall(from)
    words.push(...digests)
    from += digests.length / DIGEST_WORDS
    if (from === total) return Uint32Array.from(words)
  }
}

test('an offer has every page once, by our own digests, and no zeros; its numbers lead to the page', async () => {
  const pool = new Pool(64 * EXTENT)
  const sink = snapshot(pool, [0, 1, 0, -1, written, 2, 1])
  const before = pool.used
  const offer = new DedupIndex(pool).open(() => placesOf(sink))
  const words = await digests(offer)
  assert.is(words.length, 3 * DIGEST_WORDS)
  for (let number = 0; number < 3; number++) {
    const [[address, bytes] = [0, 0]] = offer.places(number, 1)
    assert.is(bytes, PAGE_BYTES)
    const wanted = new Uint32Array(DIGEST_WORDS)
    wanted[0] = weakDigest(pool.window(address, bytes))
    strongDigest(pool.window(address, bytes), wanted, 1)
    assert.equal(words.subarray(number * DIGEST_WORDS, (number + 1) * DIGEST_WORDS), wanted)
  }
  assert.ok(pool.used > before, 'what an offer takes is counted')
  offer.close()
  sink.drop()
  assert.is(pool.used, 0)
})

test('pages that were not offered are refused, and so is a recall out of order', async () => {
  const pool = new Pool(64 * EXTENT)
  const sink = snapshot(pool, [0, 1, 2])
  const offer = new DedupIndex(pool).open(() => placesOf(sink))
  throwsFault('FORMAT', () => offer.places(0, 1))
  await rejectsFault('FORMAT', offer.recall(1))
  const asked = offer.recall(0)
  await rejectsFault('FORMAT', offer.recall(0))
  assert.is((await asked).total, 3)
  await rejectsFault('FORMAT', offer.recall(0))
  assert.equal(
    offer.places(0, 3).reduce((sum, [, bytes]) => sum + bytes, 0),
    3 * PAGE_BYTES,
  )
  for (const [first, pages] of [
    [3, 1],
    [2, 2],
    [2 ** 36, 256],
  ] as const) {
    throwsFault('FORMAT', () => offer.places(first, pages), `${first} ${pages}`)
  }
  offer.close()
  throwsFault('ABORTED', () => offer.places(0, 1))
  sink.drop()
  assert.is(pool.used, 0)
})

test('offered pages stay until the sender ends, also when their snapshot is gone and others take memory', async () => {
  const pool = new Pool(64 * EXTENT)
  const donor = snapshot(pool, [0, 1, 2])
  const offer = new DedupIndex(pool).open(() => placesOf(donor))
  await digests(offer)
  donor.drop()
  const others = [snapshot(pool, [50, 51, 52]), snapshot(pool, [60, 61, 62])]
  const taker = new MemorySnapshot(pool, true)
  put(
    taker,
    offer
      .places(0, 3)
      .flatMap(([address, bytes]) =>
        Array.from({ length: bytes / PAGE_BYTES }, (_, n): Part => [address + n * PAGE_BYTES]),
      ),
  )
  assert.ok(content(taker).equals(expected([0, 1, 2])))
  offer.close()
  assert.ok(content(taker).equals(expected([0, 1, 2])))
  assert.is(donor.held, 3 * PAGE_BYTES)
  for (const sink of [taker, ...others]) sink.drop()
  assert.equal([donor.held, pool.used], [0, 0])
})

test('a sender that ends while digests are taken leaves nothing behind, and memory of others is not read', async () => {
  const pool = new Pool(64 * EXTENT)
  const sink = snapshot(
    pool,
    Array.from({ length: 3000 }, (_, n) => n),
  )
  const offer = new DedupIndex(pool).open(() => placesOf(sink))
  const asked = offer.recall(0)
  offer.close()
  sink.drop()
  assert.equal((await asked).digests.length, 0)
  assert.is(pool.used, 0)
})

test('when memory runs out the offer of a silent sender is withdrawn, and the sender gets MEMORY', async () => {
  const pool = new Pool(6 * EXTENT)
  const snapshots = new Snapshots(pool, { dedup: true, idleMs: 0 })
  const donor = snapshots.receive(snapshotId('donor'))
  put(
    donor.sink,
    Array.from({ length: 600 }, (_, n) => n),
  )
  donor.seal()
  const incoming = snapshots.receive(snapshotId('silent'))
  const offer = incoming.offer as DedupOffer
  await digests(offer)
  snapshots.remove(snapshotId('donor'))
  assert.equal(
    snapshots.all.map(({ id, state }) => `${id} ${state}`),
    ['silent arriving', 'donor leaving'],
  )
  const other = new MemorySnapshot(pool, true)
  put(
    other,
    Array.from({ length: 1200 }, (_, n) => 5000 + n),
  )
  assert.match(throwsFault('MEMORY', () => offer.places(0, 1)).message, 'had to go')
  assert.equal(
    snapshots.all.map(({ id }) => id),
    ['silent'],
  )
  other.drop()
  incoming.drop()
  assert.equal([pool.used, snapshots.all], [0, []])
})

test('an offer is withdrawn while its pages are taken: those that are taken stay, the next is refused', async () => {
  const pool = new Pool(12 * EXTENT)
  const snapshots = new Snapshots(pool, { dedup: true, idleMs: 0 })
  const donor = snapshots.receive(snapshotId('donor'))
  const many = Array.from({ length: 600 }, (_, n) => 1000 + n)
  put(donor.sink, many)
  donor.seal()
  const incoming = snapshots.receive(snapshotId('taking'))
  await digests(incoming.offer as DedupOffer)
  const addresses = (incoming.offer as DedupOffer)
    .places(0, 600)
    .flatMap(([address, bytes]) =>
      Array.from({ length: bytes / PAGE_BYTES }, (_, n): number => address + n * PAGE_BYTES),
    )
  snapshots.remove(snapshotId('donor'))
  const { shared } = incoming.sink.open(pagesImage)
  const taken: number[] = []
  const brim = pool.limit - pool.used
  pool.charge(brim)
  // Backwards no two are side by side, so that their ranges have to grow.
  const takeAll = (): void => {
    for (const address of addresses.toReversed()) {
      shared?.take(address, 1)
      taken.push(address)
    }
  }
  assert.match(throwsFault('MEMORY', takeAll).message, /had to go/)
  assert.ok(taken.length >= 64 && taken.length < 600, `${taken.length} were taken`)
  for (const address of taken) {
    assert.ok(page(1000 + addresses.indexOf(address)).equals(pool.window(address, PAGE_BYTES)), `${address}`)
  }
  pool.charge(-brim)
  incoming.drop()
  assert.equal([pool.used, snapshots.all], [0, []])
})

test('without memory for an offer nothing is offered, and nothing fails', async () => {
  const pool = new Pool(3 * EXTENT)
  const sink = snapshot(
    pool,
    Array.from({ length: 200 }, (_, n) => n),
  )
  while (pool.limit - pool.used > 1024) pool.charge(512)
  const others = pool.used - sink.held
  let looked = 0
  const offer = new DedupIndex(pool).open(() => {
    looked++
    return placesOf(sink)
  })
  assert.equal((await offer.recall(0)).total, 0)
  assert.equal((await offer.recall(0)).total, 0)
  assert.is(looked, 1, 'who asks again does not make us look again')
  sink.drop()
  assert.is(pool.used, others, 'and nothing is kept for it')
  offer.close()
})

test('the memory of an offer is charged, however few pages it has in each extent', async () => {
  const pool = new Pool(64 * EXTENT)
  const sinks = Array.from({ length: 20 }, (_, n) => snapshot(pool, [n]))
  const before = pool.used
  const offer = new DedupIndex(pool).open(() => sinks.flatMap(placesOf))
  assert.is((await offer.recall(0)).total, 20)
  assert.ok(pool.used - before >= 20 * (PAGES + DIGESTS_BYTES), `${pool.used - before} bytes`)
  offer.close()
  for (const sink of sinks) sink.drop()
  assert.is(pool.used, 0)
})

test('digests that do not fit into one answer come in several', async () => {
  const pool = new Pool(2 ** 30)
  const sink = new MemorySnapshot(pool, true)
  const writer = sink.open(pagesImage)
  const count = MOST_RECALLED + 10
  for (let n = 0; n < count; n++) {
    const room = writer.room(PAGE_BYTES)
    new Uint32Array(room.buffer, room.byteOffset, 1)[0] = n + 1
    writer.wrote(PAGE_BYTES)
  }
  writer.end({ name: pagesImage, size: count * PAGE_BYTES, digest: 0n })
  const offer = new DedupIndex(pool).open(() => placesOf(sink))
  const [first, second] = [await offer.recall(0), await offer.recall(MOST_RECALLED)]
  assert.equal([first.total, second.total], [count, count])
  assert.equal([first.digests.length, second.digests.length], [MOST_RECALLED * DIGEST_WORDS, 10 * DIGEST_WORDS])
  offer.close()
  sink.drop()
  assert.is(pool.used, 0)
})

test('a snapshot whose memory is given back as it is read is no donor', async () => {
  const pool = new Pool(64 * EXTENT)
  const snapshots = new Snapshots(pool, { dedup: true })
  const [first, writing, asking] = ['first', 'writing', 'asking'].map((id) => snapshots.receive(snapshotId(id)))
  const many = Array.from({ length: 2 * PAGES }, (_, n) => n)
  put(first?.sink as MemorySnapshot, many)
  first?.seal()
  const found = await snapshots.find(snapshotId('first'), 0)
  const done = found.use()
  for (const piece of [...(found.images.get(pagesImage)?.pieces ?? [])]) found.release(piece)
  put(writing?.sink as MemorySnapshot, many)
  assert.is((await asking?.offer?.recall(0))?.total, 0)
  done()
  for (const incoming of [writing, asking]) incoming?.drop()
  snapshots.remove(snapshotId('first'))
  assert.equal([pool.used, snapshots.all], [0, []])
})

test('a chain shares pages as a snapshot does, and its next round replaces those that only it needs', async () => {
  const pool = new Pool(64 * EXTENT)
  const snapshots = new Snapshots(pool, { dedup: true })
  const incoming = snapshots.receive(snapshotId('a'))
  put(incoming.sink, [0, 1, 2])
  incoming.seal()
  const [address = 0] = addressesOf(incoming.sink)
  const chain = snapshots.receive(snapshotId('c'), { under: 0, last: false, token: Buffer.alloc(16, 1) })
  put(chain.sink, [[address], 7])
  await chain.complete()
  chain.seal()
  snapshots.remove(snapshotId('a'))
  assert.is(snapshots.all.find(({ state }) => state === 'leaving')?.sink.held, PAGE_BYTES)
  snapshots.removeChain(snapshotId('c'))
  assert.equal([pool.used, snapshots.all], [0, []])
})

test.run()
