import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import { type IncomingSnapshot, Snapshots } from '../../lib/store/snapshots.ts'
import type { LostSnapshot } from '../../lib/store/waiters.ts'
import { rejectsFault, throwsFault, waits, within } from '../expect.ts'
import { entry } from '../stream/snapshots.ts'

const test = suite('store/snapshots')

const [one, two] = [snapshotId('one'), snapshotId('two')]
const LONG = 60_000

async function arrive(shelf: Snapshots, id: SnapshotId): Promise<IncomingSnapshot> {
  const arriving = shelf.receive(id)
  const writer = await arriving.sink.open('inventory.img' as never)
  writer.room(3).set(Buffer.from('abc'))
  await writer.wrote(3)
  await writer.end(entry('inventory.img', Buffer.from('abc')))
  return arriving
}

test('a snapshot is had by its id, or as the newest, when it is sealed', async () => {
  const shelf = new Snapshots(new Pool(4 * EXTENT))
  assert.equal([shelf.has(one), shelf.has(undefined)], [false, false])
  const arriving = await arrive(shelf, one)
  assert.equal([shelf.has(one), shelf.has(undefined)], [false, false], 'complete, but not sealed')
  arriving.seal()
  assert.equal([shelf.has(one), shelf.has(undefined), shelf.has(two)], [true, true, false])
  const found = await within(shelf.find(one, LONG))
  assert.is(found.id, 'one')
  assert.equal([...found.images.keys()], ['inventory.img'])
  assert.is(await within(shelf.find(undefined, LONG)), found)
  assert.is(await within(shelf.find(one, LONG)), found, 'as often as it is asked for')
})

test('a snapshot without a byte counts too: nobody can put up any number of them', async () => {
  const shelf = new Snapshots(new Pool(2 * EXTENT))
  const first = shelf.receive(one)
  shelf.receive(two)
  throwsFault('MEMORY', () => shelf.receive(snapshotId('three')))
  first.drop()
  shelf.receive(snapshotId('three'))
})

test('whoever comes early waits', async () => {
  const shelf = new Snapshots(new Pool(4 * EXTENT))
  const waiters = [shelf.find(one, LONG), shelf.find(undefined, LONG), shelf.find(one, LONG)]
  const other = shelf.find(two, LONG)
  const arriving = await arrive(shelf, one)
  assert.ok(await waits(Promise.race([...waiters, other])))
  arriving.seal()
  for (const waiter of waiters) assert.is((await within(waiter)).id, 'one')
  assert.ok(await waits(other), 'another id is not what it asked for')
  const second = await arrive(shelf, two)
  second.seal()
  assert.is((await within(other)).id, 'two')
})

test('the newest is the one that was sealed last', async () => {
  const shelf = new Snapshots(new Pool(4 * EXTENT))
  const [first, second] = [await arrive(shelf, one), await arrive(shelf, two)]
  second.seal()
  first.seal()
  assert.is((await within(shelf.find(undefined, LONG))).id, 'one')
})

test('the newest waits for none that arrives, and for a while for a verdict; an id waits for both', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  const first = shelf.find(undefined, LONG)
  const arriving = await arrive(shelf, two)
  assert.ok(await waits(first))
  ;(await arrive(shelf, one)).seal()
  assert.is((await within(first)).id, 'one')
  assert.ok(shelf.has(undefined))
  assert.is((await within(shelf.find(undefined, LONG))).id, 'one')
  const named = shelf.find(two, LONG)
  arriving.seal(true)
  const newest = shelf.find(undefined, LONG)
  assert.ok(await waits(newest))
  assert.is((await within(shelf.find(undefined, LONG, undefined, { early: true }))).id, 'two')
  assert.ok(await waits(named))
  shelf.decide(two, false)
  assert.is((await within(named)).id, 'two')
  assert.is((await within(newest)).id, 'two')
})

test('a verdict that does not come keeps nobody from the newest before it', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  ;(await arrive(shelf, one)).seal()
  ;(await arrive(shelf, two)).seal(true)
  const newest = shelf.find(undefined, LONG)
  assert.ok(await waits(newest))
  assert.is((await within(newest, 'the newest', 60_000)).id, 'one')
  assert.is((await within(shelf.find(undefined, LONG))).id, 'one')
  assert.is((await within(shelf.find(undefined, LONG, undefined, { early: true }))).id, 'two')
})

test('nor do those keep anybody that come one after the other, each without a verdict', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  ;(await arrive(shelf, one)).seal()
  ;(await arrive(shelf, two)).seal(true)
  const newest = shelf.find(undefined, LONG)
  let more = 0
  const next = async (): Promise<void> => (await arrive(shelf, snapshotId(`more${more++}`))).seal(true)
  const flood = setInterval(() => void next().catch(() => {}), 6000)
  try {
    assert.is((await within(newest, 'the newest', 25_000)).id, 'one')
  } finally {
    clearInterval(flood)
  }
})

test('an id that is here or on its way is EXISTS, and what is here stays', async () => {
  const shelf = new Snapshots(new Pool(4 * EXTENT))
  const arriving = await arrive(shelf, one)
  throwsFault('EXISTS', () => shelf.receive(one))
  arriving.seal()
  throwsFault('EXISTS', () => shelf.receive(one))
  assert.is((await within(shelf.find(one, LONG))).images.size, 1)
})

test('a drop gives the memory and the id back, and does nothing to what is sealed', async () => {
  const pool = new Pool(EXTENT)
  const shelf = new Snapshots(pool)
  const failed = await arrive(shelf, one)
  assert.is(pool.used, EXTENT)
  failed.drop()
  assert.is(pool.used, 0)
  const arriving = await arrive(shelf, one)
  arriving.seal()
  arriving.drop()
  assert.is(pool.used, EXTENT)
  const image = (await within(shelf.find(one, LONG))).images.get('inventory.img' as never)
  assert.is(Buffer.concat([...(image?.pieces ?? [])].map(({ window }) => window)).toString(), 'abc')
})

test('waiting has an end: TIMEOUT, for that waiter alone', async () => {
  const shelf = new Snapshots(new Pool(EXTENT))
  const patient = shelf.find(one, LONG)
  assert.match((await rejectsFault('TIMEOUT', shelf.find(one, 1))).message, 'no snapshot one')
  assert.match((await rejectsFault('TIMEOUT', shelf.find(undefined, 1))).message, 'no snapshot was sealed')
  ;(await arrive(shelf, one)).seal()
  assert.is((await within(patient)).id, 'one')
})

test('the longest time-out that the wire carries is waited for', async () => {
  const shelf = new Snapshots(new Pool(EXTENT))
  const patient = shelf.find(one, 2 ** 31 - 1)
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.ok(await waits(patient))
  ;(await arrive(shelf, one)).seal()
  assert.is((await within(patient)).id, 'one')
})

test('what was given back as it was read is nobody else’s to read', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  const arriving = shelf.receive(one)
  const name = 'pages-1.img' as never
  const writer = arriving.sink.open(name)
  for (let at = 0; at < 4 * EXTENT; ) {
    const room = writer.room(EXTENT)
    room.fill(1)
    writer.wrote(room.length)
    at += room.length
  }
  writer.end(entry('pages-1.img', Buffer.alloc(0)))
  arriving.seal()
  const found = await within(shelf.find(one, LONG))
  found.use()
  for (const piece of found.images.get(name)?.pieces ?? []) found.release(piece)
  const other = await arrive(shelf, two)
  other.seal()
  throwsFault('EXISTS', () => found.use())
  const again = await within(shelf.find(one, LONG))
  throwsFault('EXISTS', () => again.use())
  shelf.remove(one)
})

test('what is removed while somebody reads it keeps its memory until the last has read', async () => {
  const pool = new Pool(4 * EXTENT)
  const shelf = new Snapshots(pool)
  const arriving = await arrive(shelf, one)
  arriving.seal()
  const found = await within(shelf.find(one, LONG))
  const [first, second] = [found.use(), found.use()]
  const [piece] = found.images.get('inventory.img' as never)?.pieces ?? []
  shelf.remove(one)
  assert.not(shelf.has(one))
  assert.is(Buffer.from(piece?.window ?? []).toString(), 'abc')
  first()
  assert.is(Buffer.from(piece?.window ?? []).toString(), 'abc')
  second()
  assert.is(pool.used, 0)
  assert.not.equal(Buffer.from(piece?.window ?? []).toString(), 'abc')
})

test('an undecided snapshot is for those who may have it early; a copy is not for those who waited', async () => {
  const shelf = new Snapshots(new Pool(4 * EXTENT))
  const arriving = await arrive(shelf, one)
  arriving.seal(true)
  assert.not(shelf.has(one))
  assert.is((await within(shelf.find(one, LONG, undefined, { early: true }))).undecided, true)
  const leaving = new AbortController()
  const waiting = shelf.find(one, LONG, leaving.signal)
  shelf.decide(one, true)
  assert.ok(await waits(waiting), 'it did not ask for a copy')
  assert.is((await within(shelf.find(one, LONG))).id, 'one', 'who asks now knows')
  const second = await arrive(shelf, two)
  second.seal(true)
  const patient = shelf.find(two, LONG)
  assert.ok(await waits(patient))
  shelf.decide(two, false)
  assert.is((await within(patient)).id, 'two')
  // Or this process would wait as long.
  leaving.abort(new Fault('ABORTED', 'no longer asked for'))
  await rejectsFault('ABORTED', waiting)
})

test('who waits is told when what it waits for has failed, and by no other failure', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  const seen: [string, string[], boolean][] = []
  const lost = ({ id, images, others }: LostSnapshot): boolean => {
    seen.push([id, [...images.keys()], others])
    return id === two
  }
  const [waiting, plain] = [shelf.find(two, LONG, undefined, { lost }), shelf.find(two, LONG)]
  const [newest, other] = [shelf.find(undefined, LONG), shelf.find(snapshotId('three'), LONG)]
  shelf.receive(snapshotId('round'), { under: 0, last: false, token: Buffer.alloc(16) }).drop()
  const first = await arrive(shelf, one)
  const second = await arrive(shelf, two)
  first.drop()
  for (const each of [waiting, plain, newest]) assert.ok(await waits(each), 'it waits for another one')
  second.seal(true)
  shelf.remove(two)
  for (const each of [waiting, plain, newest]) await rejectsFault('FAILED_DUMP', each)
  assert.equal(seen, [
    ['one', ['inventory.img'], true],
    ['two', ['inventory.img'], false],
  ])
  const third = await arrive(shelf, snapshotId('three'))
  third.seal()
  assert.is((await within(other)).id, 'three', 'who did not ask for it is told nothing')
})

test('the newest of those that fit', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  for (const id of [one, two]) (await arrive(shelf, id)).seal()
  const first = (await within(shelf.find(one, LONG))).images
  const fits = (images: ReadonlyMap<string, unknown>): boolean => images === first
  assert.is((await within(shelf.find(undefined, LONG, undefined, { fits }))).id, 'one')
  assert.is((await within(shelf.find(undefined, LONG))).id, 'two')
})

test('what was dropped from outside is never sealed, also while it is looked through', async () => {
  const shelf = new Snapshots(new Pool(4 * EXTENT))
  const arriving = await arrive(shelf, one)
  const completed = arriving.complete()
  arriving.drop()
  await rejectsFault('ABORTED', completed)
  throwsFault('ABORTED', () => arriving.seal())
  throwsFault('ABORTED', () => arriving.join({ under: 0, last: true, token: Buffer.alloc(16) }))
  throwsFault('ABORTED', () => arriving.open('late.img' as never))
  arriving.drop()
  assert.equal([shelf.has(one), shelf.all.filter(({ state }) => state !== 'leaving').length], [false, 0])
  const again = await arrive(shelf, one)
  again.seal()
  assert.ok(shelf.has(one))
})

test.run()
