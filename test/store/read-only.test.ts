/** Nobody may write into the memory of images from their seal until it goes back to the pool. */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type ImageName, imageName, type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { pageFlag } from '../../lib/format/pagemap.ts'
import { makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { vmspliceAll, writeAll } from '../../lib/kernel/transfer.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { EXTENT, type Extent, Pool } from '../../lib/store/pool.ts'
import { makeReadOnly } from '../../lib/store/read-only.ts'
import { type IncomingSnapshot, Snapshots } from '../../lib/store/snapshots.ts'
import { type Piece, writeInto } from '../../lib/store/stored-image.ts'
import { turns, within } from '../expect.ts'
import { bytesOf } from '../stream/snapshots.ts'
import { readToEnd } from '../support/fake-criu.ts'
import { isWritable, mappings } from '../support/mappings.ts'
import { type Brief, inventory, pageOf, pagesOf, part, put, token } from '../support/rounds.ts'
import { eventually, root, run } from '../support/run.ts'

const test = suite('store/read-only')

const [one, two] = [snapshotId('one'), snapshotId('two')]
const LARGE = 5 * EXTENT + 100_000
const images = { 'pages-1.img': LARGE, 'core-1.img': 5000, 'inventory.img': 80 }

function fill(sink: Pick<MemorySnapshot, 'open'>, word: string): void {
  for (const [name, size] of Object.entries(images)) {
    const writer = sink.open(imageName(name))
    writeInto(writer, bytesOf(word + name, size))
    writer.end({ name: imageName(name), size, digest: 0n })
  }
}

function all(work: Generator<void, void>): void {
  for (const _ of work);
}

function extentsOf(sink: Pick<MemorySnapshot, 'images'>): bigint[] {
  const pieces = [...sink.images.values()].flatMap((image) => [...image.pieces])
  return [...new Set(pieces.map(({ address }) => address - (address % BigInt(EXTENT))))]
}

/** Each byte of all of an image's pieces is what it was. */
function isWhole(sink: Pick<MemorySnapshot, 'images'>, word: string): boolean {
  return Object.entries(images).every(([name, size]) => {
    const pieces = sink.images.get(name as ImageName)?.pieces ?? []
    return Buffer.concat([...pieces].map(({ window }) => window)).equals(bytesOf(word + name, size))
  })
}

/** Takes all free extents, and writes to each byte. */
function fillPool(pool: Pool): Extent[] {
  const taken: Extent[] = []
  while (pool.used + EXTENT <= pool.limit) taken.push(pool.take())
  for (const { address, window } of taken) {
    assert.ok(isWritable(address))
    window.fill(7)
  }
  return taken
}

test('neighbours become one mapping, a few at a time, and extents that were given back meanwhile stay writable', () => {
  const pool = new Pool(100 * EXTENT)
  const extents = new Map<bigint, Extent>(
    Array.from({ length: 70 }, () => pool.take()).map((each) => [each.address, each]),
  )
  const addresses = [...extents.keys()]
  const count = (): number =>
    mappings().filter(({ begin, end }) => addresses.some((at) => begin <= at && at < end)).length
  const work = makeReadOnly(extents.values())
  assert.not(work.next().done)
  assert.equal(
    addresses.map(isWritable),
    addresses.map((_, at) => at >= 32),
  )
  for (const at of [3, 40]) {
    const address = addresses[at] as bigint
    pool.give(extents.get(address) as Extent)
    extents.delete(address)
  }
  const again = [pool.take(), pool.take()]
  all(work)
  assert.equal(
    addresses.map(isWritable),
    addresses.map((_, at) => at === 3 || at === 40),
  )
  // The two writable extents, and what lies before, between and behind them, in three regions.
  assert.is(count(), 7)
  for (const extent of [...again, ...extents.values()]) pool.give(extent)
  for (const extent of fillPool(pool)) pool.give(extent)
  assert.is(count(), 3)
})

for (const apart of [false, true]) {
  const how = apart ? 'with pages apart' : 'of images'
  test(`all extents ${how} are protected, those of small images too, and none that was only announced`, async () => {
    const pool = new Pool(64 * EXTENT)
    const sink = new MemorySnapshot(pool, apart)
    await sink.reserve(20 * EXTENT)
    fill(sink, 'a')
    sink.complete()
    assert.ok(extentsOf(sink).every(isWritable))
    all(sink.protect())
    assert.ok(extentsOf(sink).length >= 7)
    assert.not(extentsOf(sink).some(isWritable))
    assert.ok(isWhole(sink, 'a'))
    const others = new MemorySnapshot(pool, apart)
    fill(others, 'b')
    assert.ok(isWhole(others, 'b') && isWhole(sink, 'a'))
    sink.drop()
    others.drop()
    for (const extent of fillPool(pool)) pool.give(extent)
    assert.is(pool.used, 0)
  })
}

test('protected memory is read, lent and discarded as before, and the kernel writes nothing there', async () => {
  const pool = new Pool(16 * EXTENT)
  const sink = new MemorySnapshot(pool)
  fill(sink, 'a')
  all(sink.protect())
  const pieces = [...(sink.images.get('pages-1.img' as ImageName)?.pieces ?? [])]
  for (const send of [vmspliceAll, (lent: Piece[], to: never) => writeAll(to, lent[0]?.window as Uint8Array)]) {
    const [out, into] = makePipe()
    const got = readToEnd(out)
    for (const piece of pieces) await within(send([piece], into as never))
    closeFd(into)
    assert.ok((await within(got)).equals(bytesOf('apages-1.img', LARGE)))
    closeFd(out)
  }
  const [out, into] = makePipe()
  await writeAll(into, Buffer.alloc(4096, 'EVIL'))
  const { address } = pieces[0] as Piece
  assert.is(libc.read(out, address, 4096), -14, 'EFAULT')
  closeFd(out)
  closeFd(into)
  assert.ok(isWhole(sink, 'a'))
  for (const piece of pieces) sink.release(piece)
  assert.ok(fillPool(pool).length >= pieces.length, 'it is anybody’s again')
})

test('a write to protected memory ends the process before anything is changed', async () => {
  for (const what of ['an image', 'a window that is still held', 'zeros']) {
    const program = join(import.meta.dirname, 'forbidden-write.ts')
    const { code, signal, stdout } = await run(process.execPath, ['--import', 'tsx', program, what], { cwd: root })
    assert.equal([code, signal, stdout.toString()], [null, 'SIGSEGV', 'about to write\n'], what)
  }
})

function receive(snapshots: Snapshots, id: SnapshotId): IncomingSnapshot {
  const incoming = snapshots.receive(id)
  fill(incoming, id)
  return incoming
}

test('a snapshot is protected soon after its seal, and at once when somebody uses it', async () => {
  const pool = new Pool(64 * EXTENT)
  const snapshots = new Snapshots(pool)
  const first = receive(snapshots, one)
  await first.complete()
  first.seal()
  await eventually(() => !extentsOf(first.sink).some(isWritable) || undefined, 'its protection')
  const second = receive(snapshots, two)
  second.seal()
  assert.ok(extentsOf(second.sink).every(isWritable), 'not while somebody waits for the word')
  const found = await within(snapshots.find(two, 0))
  const done = found.use()
  assert.not(extentsOf(found).some(isWritable))
  assert.ok(isWhole(found, 'two'))
  done()
  snapshots.remove(one)
  snapshots.remove(two)
  await turns()
  for (const extent of fillPool(pool)) pool.give(extent)
})

test('a snapshot that is dropped before it is protected leaves no memory that others cannot use', async () => {
  const pool = new Pool(64 * EXTENT)
  const snapshots = new Snapshots(pool)
  receive(snapshots, one).seal()
  snapshots.remove(one)
  const next = receive(snapshots, two)
  await turns()
  assert.ok(extentsOf(next.sink).every(isWritable))
  next.drop()
  for (const extent of fillPool(pool)) pool.give(extent)
})

test('the parts of a chain come into the same memory, which is protected with the last', async () => {
  const pool = new Pool(64 * EXTENT)
  const snapshots = new Snapshots(pool)
  const { parent, present } = pageFlag
  const changed = Array.from({ length: 3000 }, (_, page): Brief => [page, 1, page % 3 === 0 ? present : parent])
  const rounds = 3
  for (let under = 0; under <= rounds; under++) {
    const incoming = snapshots.receive(one, { under, last: under === rounds, token })
    const last = { ...part('last', changed), 'inventory.img': inventory }
    put(incoming, under === rounds ? last : part(`${under}`, [[0, 3000, present]]))
    await incoming.complete()
    incoming.seal()
    await turns()
    if (under < rounds) assert.ok(extentsOf(incoming.sink).every(isWritable))
    else await eventually(() => !extentsOf(incoming.sink).some(isWritable) || undefined, 'its protection')
  }
  const found = await within(snapshots.find(one, 0))
  const pages = pagesOf(found)
  for (let page = 0; page < 3000; page++) {
    const word = page % 3 === 0 ? 'last' : `${rounds - 1}`
    assert.equal(pages.get(page), pageOf(word, page), `page ${page}`)
  }
  found.use()()
  snapshots.remove(one)
  assert.is(pool.used, 0)
  for (const extent of fillPool(pool)) pool.give(extent)
})

test.run()
