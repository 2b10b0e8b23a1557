/** Chains that wait for their next part: who may continue, replace and end them, and what becomes of their memory. */
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { snapshotId } from '../../lib/format/names.ts'
import { pageFlag } from '../../lib/format/pagemap.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import { type IncomingSnapshot, Snapshots } from '../../lib/store/snapshots.ts'
import { rejectsFault, throwsFault, waits, within } from '../expect.ts'
import { type Images, inventory, pageOf, pagesOf, part, put, token } from '../support/rounds.ts'
import { eventually } from '../support/run.ts'

const test = suite('store/pending-chains')

const { parent, present } = pageFlag
const [one, two] = [snapshotId('one'), snapshotId('two')]
const other = Buffer.alloc(16, 1)

async function receive(
  snapshots: Snapshots,
  images: Images,
  under: number,
  last: boolean,
  shown = token,
): Promise<IncomingSnapshot> {
  const incoming = snapshots.receive(one, { under, last, token: shown })
  put(incoming.sink, images)
  await incoming.complete()
  return incoming
}

async function round(snapshots: Snapshots, images: Images, under: number): Promise<void> {
  ;(await receive(snapshots, images, under, false)).seal()
}

const first = part('a', [[0, 3, present]])
const second = part('b', [
  [0, 1, parent],
  [1, 1, present],
  [2, 1, parent],
])
const end = { ...part('c', [[0, 3, parent]]), 'inventory.img': inventory }

test('rounds are not found, not even as the newest; the last part is, with the pages of all', async () => {
  const pool = new Pool(8 * EXTENT)
  const snapshots = new Snapshots(pool)
  await round(snapshots, first, 0)
  await round(snapshots, second, 1)
  assert.equal([snapshots.has(one), snapshots.has(undefined), snapshots.counts.snapshots], [false, false, 0])
  const [newest, byId] = [snapshots.find(undefined, 60_000), snapshots.find(one, 60_000)]
  assert.ok(await waits(Promise.race([newest, byId])))
  const incoming = await receive(snapshots, end, 2, true)
  assert.ok(await waits(newest), 'complete, but not sealed')
  incoming.seal()
  const found = await within(newest)
  assert.is(found, await within(byId))
  assert.equal([...pagesOf(found).values()], [pageOf('a', 0), pageOf('b', 1), pageOf('a', 2)])
  snapshots.remove(one)
  assert.is(pool.used, 0)
})

test('a chain does not delay a search for the newest, whether it waits for its next round or grows', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  const plain = snapshots.receive(two)
  put(plain.sink, { 'inventory.img': inventory })
  await plain.complete()
  plain.seal()
  await round(snapshots, first, 0)
  assert.is((await within(snapshots.find(undefined, 60_000))).id, two)
  const growing = snapshots.receive(one, { under: 1, last: false, token })
  assert.is((await within(snapshots.find(undefined, 60_000))).id, two)
  growing.drop()
})

test('only a sender with the token continues a chain, replaces it, or ends it', async () => {
  const pool = new Pool(8 * EXTENT)
  const snapshots = new Snapshots(pool)
  await round(snapshots, first, 0)
  const used = pool.used
  for (const last of [false, true]) {
    const fault = throwsFault('MISSING', () => snapshots.receive(one, { under: 1, last, token: other }))
    assert.is(
      fault.message,
      throwsFault('MISSING', () => snapshots.receive(two, { under: 1, last, token })).message.replace('two', 'one'),
    )
    assert.ok(throwsFault('EXISTS', () => snapshots.receive(one, { under: 0, last, token: other })).hint)
  }
  for (const under of [2, 3, 1000]) {
    const { message } = throwsFault('MISSING', () => snapshots.receive(one, { under, last: false, token }))
    assert.is(message, `no chain one of ${under} rounds is here`)
  }
  const plain = snapshots.receive(one)
  assert.not(plain.owns)
  assert.ok(throwsFault('EXISTS', () => plain.sink).hint)
  throwsFault('EXISTS', () => plain.seal())
  await rejectsFault('EXISTS', plain.complete())
  plain.drop()
  assert.is(pool.used, used, 'the chain is as it was')
  ;(await receive(snapshots, { ...end, ...part('c', [[1, 1, parent]]) }, 1, true)).seal()
  assert.equal([...pagesOf(await within(snapshots.find(one, 0))).values()], [pageOf('a', 1)])
})

test('an owner who begins anew gets a new chain, and the memory of the old one is free', async () => {
  const pool = new Pool(4 * EXTENT)
  const snapshots = new Snapshots(pool)
  for (let again = 0; again < 5; again++) {
    await round(snapshots, part('a', [[0, 200, present]]), 0)
    await round(snapshots, second, 1)
  }
  const full = { ...part('z', [[5, 1, present]]), 'inventory.img': inventory }
  ;(await receive(snapshots, full, 0, true)).seal()
  assert.equal([...pagesOf(await within(snapshots.find(one, 0))).keys()], [5])
  assert.is(pool.used, 2 * EXTENT)
  throwsFault('EXISTS', () => snapshots.receive(one, { under: 0, last: false, token }))
})

test('while a part comes its id is taken, and the chain is not there for a second part', async () => {
  const snapshots = new Snapshots(new Pool(8 * EXTENT))
  await round(snapshots, first, 0)
  const waiting = snapshots.receive(one)
  throwsFault('MISSING', () => snapshots.receive(one, { under: 2, last: false, token }))
  const growing = snapshots.receive(one, { under: 1, last: false, token })
  throwsFault('EXISTS', () => snapshots.receive(one, { under: 1, last: false, token }))
  throwsFault('EXISTS', () => waiting.join({ under: 1, last: false, token }))
  waiting.drop()
  put(growing.sink, second)
  await growing.complete()
  growing.seal()
  growing.drop()
  throwsFault('MISSING', () => snapshots.receive(one, { under: 1, last: false, token }))
  ;(await receive(snapshots, end, 2, true)).seal()
  assert.ok(snapshots.has(one))
})

test('a part that fails takes the whole chain with it', async () => {
  const pool = new Pool(8 * EXTENT)
  const snapshots = new Snapshots(pool)
  for (const last of [false, true]) {
    await round(snapshots, first, 0)
    const cut = snapshots.receive(one, { under: 1, last, token })
    put(cut.sink, second)
    cut.drop()
    assert.is(pool.used, 0)
    throwsFault('MISSING', () => snapshots.receive(one, { under: 1, last, token }))
    await round(snapshots, first, 0)
    const bad = snapshots.receive(one, { under: 1, last, token })
    put(bad.sink, { ...part('b', [[7, 1, parent]]), 'inventory.img': inventory })
    await rejectsFault('MISSING', bad.complete())
    bad.drop()
    assert.is(pool.used, 0)
  }
})

test('pages of rounds that the last part does not need are given back after it was sealed', async () => {
  const pool = new Pool(8 * EXTENT)
  const snapshots = new Snapshots(pool)
  await round(snapshots, part('a', [[0, 1500, present]]), 0)
  ;(await receive(snapshots, { ...part('b', [[9, 1, parent]]), 'inventory.img': inventory }, 1, true)).seal()
  await eventually(() => pool.used === EXTENT + 4096 || undefined, 'the return of what is not needed')
  const found = await within(snapshots.find(one, 0))
  const done = found.use()
  const [piece] = found.images.get('pages-1.img' as never)?.pieces ?? []
  assert.ok(piece !== undefined)
  found.release(piece)
  found.release(piece)
  snapshots.remove(one)
  done()
  assert.is(pool.used, 0)
})

test('when memory runs out the longest idle chain goes first, and one that was not idle enough stays', async () => {
  const pool = new Pool(5 * EXTENT)
  const dropped: string[] = []
  const snapshots = new Snapshots(pool, { idleMs: 60, onDropped: (id, ms) => dropped.push(`${id} ${ms >= 60}`) })
  await round(snapshots, first, 0)
  const later = snapshots.receive(two, { under: 0, last: false, token })
  put(later.sink, first)
  await later.complete()
  later.seal()
  snapshots.receive(snapshotId('three'))
  assert.is(snapshots.counts.chains, 2)
  throwsFault('MEMORY', () => snapshots.receive(snapshotId('four')))
  assert.equal(dropped, [])
  await setTimeout(70)
  snapshots.pinned.add(one).add(two)
  throwsFault('MEMORY', () => snapshots.receive(snapshotId('four')), 'pinned')
  snapshots.pinned.clear()
  snapshots.receive(snapshotId('four'))
  assert.equal(dropped, ['one true'])
  throwsFault('MISSING', () => snapshots.receive(one, { under: 1, last: false, token }))
  snapshots.receive(two, { under: 1, last: false, token })
  // A chain that grows is not idle.
  snapshots.receive(snapshotId('five'))
  throwsFault('MEMORY', () => snapshots.receive(snapshotId('six')))
  assert.equal(dropped, ['one true'])
})

test('everything that has memory is listed, and a chain is removed by its id', async () => {
  const pool = new Pool(8 * EXTENT)
  const snapshots = new Snapshots(pool)
  const told = () => snapshots.all.map(({ id, state, count, sink }) => [id, state, count, sink.held])
  await round(snapshots, first, 0)
  await round(snapshots, second, 1)
  const incoming = snapshots.receive(two)
  assert.equal(told(), [
    ['two', 'arriving', 0, EXTENT],
    ['one', 'chain', 2, pool.used - EXTENT],
  ])
  put(incoming.sink, { 'inventory.img': inventory })
  await incoming.complete()
  incoming.seal()
  const done = (await within(snapshots.find(two, 0))).use()
  const three = snapshotId('three')
  const failing = snapshots.receive(three)
  for (const id of [one, two, three]) snapshots.pinned.add(id)
  assert.equal(
    [snapshots.removeChain(two), snapshots.removeChain(one), snapshots.removeChain(one)],
    [false, true, false],
  )
  failing.drop()
  assert.equal([...snapshots.pinned], [two])
  assert.equal(told(), [['two', 'sealed', 1, EXTENT]])
  snapshots.remove(two)
  assert.is(snapshots.pinned.size, 0)
  assert.equal(told(), [['two', 'leaving', 1, EXTENT]])
  done()
  assert.equal([told(), pool.used], [[], 0])
})

test.run()
