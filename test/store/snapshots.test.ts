import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import { type IncomingSnapshot, Snapshots } from '../../lib/store/snapshots.ts'
import type { LostSnapshot } from '../../lib/store/waiters.ts'
import { rejectsFault, throwsFault, turns, waits, within } from '../expect.ts'
import { entry } from '../stream/snapshots.ts'

const test = suite('store/snapshots')

const [one, two] = [snapshotId('one'), snapshotId('two')]
const LONG = 60_000

async function receive(snapshots: Snapshots, id: SnapshotId): Promise<IncomingSnapshot> {
  const incoming = snapshots.receive(id)
  const writer = await incoming.sink.open('inventory.img' as never)
  writer.room(3).set(Buffer.from('abc'))
  await writer.wrote(3)
  await writer.end(entry('inventory.img', Buffer.from('abc')))
  return incoming
}

test('a snapshot is found by its id, or as the newest, when it is sealed', async () => {
  const snapshots = new Snapshots(new Pool(4 * EXTENT))
  assert.equal([snapshots.has(one), snapshots.has(undefined)], [false, false])
  const incoming = await receive(snapshots, one)
  assert.equal([snapshots.has(one), snapshots.has(undefined)], [false, false], 'complete, but not sealed')
  incoming.seal()
  assert.equal([snapshots.has(one), snapshots.has(undefined), snapshots.has(two)], [true, true, false])
  const found = await within(snapshots.find(one, LONG))
  assert.is(found.id, 'one')
  assert.equal([...found.images.keys()], ['inventory.img'])
  assert.is(await within(snapshots.find(undefined, LONG)), found)
  assert.is(await within(snapshots.find(one, LONG)), found, 'as often as it is asked for')
})

test('an empty snapshot takes memory, too: nobody can begin any number of them', async () => {
  const snapshots = new Snapshots(new Pool(2 * EXTENT))
  const first = snapshots.receive(one)
  snapshots.receive(two)
  throwsFault('MEMORY', () => snapshots.receive(snapshotId('three')))
  first.drop()
  snapshots.receive(snapshotId('three'))
})

test('a search for a snapshot that is not here yet waits', async () => {
  const snapshots = new Snapshots(new Pool(4 * EXTENT))
  const waiters = [snapshots.find(one, LONG), snapshots.find(undefined, LONG), snapshots.find(one, LONG)]
  const other = snapshots.find(two, LONG)
  const incoming = await receive(snapshots, one)
  assert.ok(await waits(Promise.race([...waiters, other])))
  incoming.seal()
  for (const waiter of waiters) assert.is((await within(waiter)).id, 'one')
  assert.ok(await waits(other), 'another id is not what it asked for')
  const second = await receive(snapshots, two)
  second.seal()
  assert.is((await within(other)).id, 'two')
})

test('the newest is the one that was sealed last', async () => {
  const snapshots = new Snapshots(new Pool(4 * EXTENT))
  const [first, second] = [await receive(snapshots, one), await receive(snapshots, two)]
  second.seal()
  first.seal()
  assert.is((await within(snapshots.find(undefined, LONG))).id, 'one')
})

test('a search for the newest waits for a verdict, for a while; one by id also for a snapshot that comes', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  const first = snapshots.find(undefined, LONG)
  const incoming = await receive(snapshots, two)
  assert.ok(await waits(first))
  ;(await receive(snapshots, one)).seal()
  assert.is((await within(first)).id, 'one')
  assert.ok(snapshots.has(undefined))
  assert.is((await within(snapshots.find(undefined, LONG))).id, 'one')
  const named = snapshots.find(two, LONG)
  incoming.seal(true)
  const newest = snapshots.find(undefined, LONG)
  assert.ok(await waits(newest))
  assert.is((await within(snapshots.find(undefined, LONG, undefined, { early: true }))).id, 'two')
  assert.ok(await waits(named))
  snapshots.decide(two, false)
  assert.is((await within(named)).id, 'two')
  assert.is((await within(newest)).id, 'two')
})

test('a verdict that does not come keeps no search from the newest before it', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  ;(await receive(snapshots, one)).seal()
  ;(await receive(snapshots, two)).seal(true)
  const newest = snapshots.find(undefined, LONG)
  assert.ok(await waits(newest))
  assert.is((await within(newest, 'the newest', 60_000)).id, 'one')
  assert.is((await within(snapshots.find(undefined, LONG))).id, 'one')
  assert.is((await within(snapshots.find(undefined, LONG, undefined, { early: true }))).id, 'two')
})

test('a timer that fires early does not leave the search for the newest waiting', async () => {
  const { setTimeout } = globalThis
  const { now } = performance
  let clock = 0
  const timers: { due: number; fire: () => void }[] = []
  const set = (fire: () => void, ms: number) => {
    timers.push({ due: clock + ms, fire })
    return { unref: () => {} }
  }
  try {
    performance.now = () => clock
    globalThis.setTimeout = set as never
    const snapshots = new Snapshots(new Pool(8 * EXTENT))
    ;(await receive(snapshots, one)).seal()
    ;(await receive(snapshots, two)).seal(true)
    const newest = snapshots.find(undefined, LONG)
    const [verdict] = timers
    assert.is(verdict?.due, 10_000)
    clock = 9_998
    verdict?.fire()
    clock = 10_000
    for (const { due, fire } of timers.slice(1)) if (due === clock) fire()
    assert.is((await Promise.race([newest, turns()]))?.id, 'one')
  } finally {
    performance.now = now
    globalThis.setTimeout = setTimeout
  }
})

test('nor do snapshots that come one after the other, each without a verdict', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  ;(await receive(snapshots, one)).seal()
  ;(await receive(snapshots, two)).seal(true)
  const newest = snapshots.find(undefined, LONG)
  let more = 0
  const next = async (): Promise<void> => (await receive(snapshots, snapshotId(`more${more++}`))).seal(true)
  const flood = setInterval(() => void next().catch(() => {}), 6000)
  try {
    assert.is((await within(newest, 'the newest', 25_000)).id, 'one')
  } finally {
    clearInterval(flood)
  }
})

test('an id that is here or on its way is EXISTS, and what is here stays', async () => {
  const snapshots = new Snapshots(new Pool(4 * EXTENT))
  const incoming = await receive(snapshots, one)
  throwsFault('EXISTS', () => snapshots.receive(one))
  incoming.seal()
  throwsFault('EXISTS', () => snapshots.receive(one))
  assert.is((await within(snapshots.find(one, LONG))).images.size, 1)
})

test('a drop gives the memory and the id back, and does nothing to what is sealed', async () => {
  const pool = new Pool(EXTENT)
  const snapshots = new Snapshots(pool)
  const failed = await receive(snapshots, one)
  assert.is(pool.used, EXTENT)
  failed.drop()
  assert.is(pool.used, 0)
  const incoming = await receive(snapshots, one)
  incoming.seal()
  incoming.drop()
  assert.is(pool.used, EXTENT)
  const image = (await within(snapshots.find(one, LONG))).images.get('inventory.img' as never)
  assert.is(Buffer.concat([...(image?.pieces ?? [])].map(({ window }) => window)).toString(), 'abc')
})

test('waiting has an end: TIMEOUT, for that waiter alone', async () => {
  const snapshots = new Snapshots(new Pool(EXTENT))
  const patient = snapshots.find(one, LONG)
  assert.match((await rejectsFault('TIMEOUT', snapshots.find(one, 1))).message, 'no snapshot one')
  assert.match((await rejectsFault('TIMEOUT', snapshots.find(undefined, 1))).message, 'no snapshot was sealed')
  ;(await receive(snapshots, one)).seal()
  assert.is((await within(patient)).id, 'one')
})

test('the longest time-out that the wire carries is waited for', async () => {
  const snapshots = new Snapshots(new Pool(EXTENT))
  const patient = snapshots.find(one, 2 ** 31 - 1)
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.ok(await waits(patient))
  ;(await receive(snapshots, one)).seal()
  assert.is((await within(patient)).id, 'one')
})

test('a snapshot that was given back as it was read cannot be read again', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  const incoming = snapshots.receive(one)
  const name = 'pages-1.img' as never
  const writer = incoming.sink.open(name)
  for (let at = 0; at < 4 * EXTENT; ) {
    const room = writer.room(EXTENT)
    room.fill(1)
    writer.wrote(room.length)
    at += room.length
  }
  writer.end(entry('pages-1.img', Buffer.alloc(0)))
  incoming.seal()
  const found = await within(snapshots.find(one, LONG))
  found.use()
  for (const piece of found.images.get(name)?.pieces ?? []) found.release(piece)
  const other = await receive(snapshots, two)
  other.seal()
  throwsFault('EXISTS', () => found.use())
  const again = await within(snapshots.find(one, LONG))
  throwsFault('EXISTS', () => again.use())
  snapshots.remove(one)
})

test('a snapshot that is removed while it is read keeps its memory until the last has read it', async () => {
  const pool = new Pool(4 * EXTENT)
  const snapshots = new Snapshots(pool)
  const incoming = await receive(snapshots, one)
  incoming.seal()
  const found = await within(snapshots.find(one, LONG))
  const [first, second] = [found.use(), found.use()]
  const [piece] = found.images.get('inventory.img' as never)?.pieces ?? []
  snapshots.remove(one)
  assert.not(snapshots.has(one))
  assert.is(Buffer.from(piece?.window ?? []).toString(), 'abc')
  first()
  assert.is(Buffer.from(piece?.window ?? []).toString(), 'abc')
  second()
  assert.is(pool.used, 0)
  assert.not.equal(Buffer.from(piece?.window ?? []).toString(), 'abc')
})

test('an undecided snapshot is for early searches; a copy is not for searches that waited', async () => {
  const snapshots = new Snapshots(new Pool(4 * EXTENT))
  const incoming = await receive(snapshots, one)
  incoming.seal(true)
  assert.not(snapshots.has(one))
  assert.is((await within(snapshots.find(one, LONG, undefined, { early: true }))).undecided, true)
  const leaving = new AbortController()
  const waiting = snapshots.find(one, LONG, leaving.signal)
  snapshots.decide(one, true)
  assert.ok(await waits(waiting), 'it did not ask for a copy')
  assert.is((await within(snapshots.find(one, LONG))).id, 'one', 'who asks now knows')
  const second = await receive(snapshots, two)
  second.seal(true)
  const patient = snapshots.find(two, LONG)
  assert.ok(await waits(patient))
  snapshots.decide(two, false)
  assert.is((await within(patient)).id, 'two')
  // Otherwise this process would wait as long.
  leaving.abort(new Fault('ABORTED', 'no longer asked for'))
  await rejectsFault('ABORTED', waiting)
})

test('a search is rejected when the dump that it waits for has failed, and by no other failure', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  const seen: [string, string[], boolean][] = []
  const lost = ({ id, images, others }: LostSnapshot): boolean => {
    seen.push([id, [...images.keys()], others])
    return id === two
  }
  const [waiting, plain] = [snapshots.find(two, LONG, undefined, { lost }), snapshots.find(two, LONG)]
  const [newest, other] = [snapshots.find(undefined, LONG), snapshots.find(snapshotId('three'), LONG)]
  snapshots.receive(snapshotId('round'), { under: 0, last: false, token: Buffer.alloc(16) }).drop()
  const first = await receive(snapshots, one)
  const second = await receive(snapshots, two)
  first.drop()
  for (const each of [waiting, plain, newest]) assert.ok(await waits(each), 'it waits for another one')
  second.seal(true)
  snapshots.remove(two)
  for (const each of [waiting, plain, newest]) await rejectsFault('FAILED_DUMP', each)
  assert.equal(seen, [
    ['one', ['inventory.img'], true],
    ['two', ['inventory.img'], false],
  ])
  const third = await receive(snapshots, snapshotId('three'))
  third.seal()
  assert.is((await within(other)).id, 'three', 'who did not ask for it is told nothing')
})

test('the newest of those that fit is found', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  for (const id of [one, two]) (await receive(snapshots, id)).seal()
  const first = (await within(snapshots.find(one, LONG))).images
  const fits = (images: ReadonlyMap<string, unknown>): boolean => images === first
  assert.is((await within(snapshots.find(undefined, LONG, undefined, { fits }))).id, 'one')
  assert.is((await within(snapshots.find(undefined, LONG))).id, 'two')
})

test('a snapshot that was dropped from outside is never sealed, also while it is checked', async () => {
  const snapshots = new Snapshots(new Pool(4 * EXTENT))
  const incoming = await receive(snapshots, one)
  const completed = incoming.complete()
  incoming.drop()
  await rejectsFault('ABORTED', completed)
  throwsFault('ABORTED', () => incoming.seal())
  throwsFault('ABORTED', () => incoming.join({ under: 0, last: true, token: Buffer.alloc(16) }))
  throwsFault('ABORTED', () => incoming.open('late.img' as never))
  incoming.drop()
  assert.equal([snapshots.has(one), snapshots.all.filter(({ state }) => state !== 'leaving').length], [false, 0])
  const again = await receive(snapshots, one)
  again.seal()
  assert.ok(snapshots.has(one))
})

test.run()
