/** Chains on the shelf: who may continue, replace and end them, and what becomes of their memory. */
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

async function arrive(
  shelf: Snapshots,
  images: Images,
  under: number,
  last: boolean,
  shown = token,
): Promise<IncomingSnapshot> {
  const arriving = shelf.receive(one, { under, last, token: shown })
  put(arriving.sink, images)
  await arriving.complete()
  return arriving
}

async function round(shelf: Snapshots, images: Images, under: number): Promise<void> {
  ;(await arrive(shelf, images, under, false)).seal()
}

const first = part('a', [[0, 3, present]])
const second = part('b', [
  [0, 1, parent],
  [1, 1, present],
  [2, 1, parent],
])
const end = { ...part('c', [[0, 3, parent]]), 'inventory.img': inventory }

test('rounds are not to be had, and are not the newest; the last is, with the pages of all', async () => {
  const pool = new Pool(8 * EXTENT)
  const shelf = new Snapshots(pool)
  await round(shelf, first, 0)
  await round(shelf, second, 1)
  assert.equal([shelf.has(one), shelf.has(undefined), shelf.counts.snapshots], [false, false, 0])
  const [newest, byId] = [shelf.find(undefined, 60_000), shelf.find(one, 60_000)]
  assert.ok(await waits(Promise.race([newest, byId])))
  const arriving = await arrive(shelf, end, 2, true)
  assert.ok(await waits(newest), 'complete, but not sealed')
  arriving.seal()
  const found = await within(newest)
  assert.is(found, await within(byId))
  assert.equal([...pagesOf(found).values()], [pageOf('a', 0), pageOf('b', 1), pageOf('a', 2)])
  shelf.remove(one)
  assert.is(pool.used, 0)
})

test('a chain does not hold up who asks for the newest, whether it waits for its next round or grows', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  const plain = shelf.receive(two)
  put(plain.sink, { 'inventory.img': inventory })
  await plain.complete()
  plain.seal()
  await round(shelf, first, 0)
  assert.is((await within(shelf.find(undefined, 60_000))).id, two)
  const growing = shelf.receive(one, { under: 1, last: false, token })
  assert.is((await within(shelf.find(undefined, 60_000))).id, two)
  growing.drop()
})

test('only who has the token continues a chain, replaces it, or ends it', async () => {
  const pool = new Pool(8 * EXTENT)
  const shelf = new Snapshots(pool)
  await round(shelf, first, 0)
  const used = pool.used
  for (const last of [false, true]) {
    const fault = throwsFault('MISSING', () => shelf.receive(one, { under: 1, last, token: other }))
    assert.is(
      fault.message,
      throwsFault('MISSING', () => shelf.receive(two, { under: 1, last, token })).message.replace('two', 'one'),
    )
    assert.ok(throwsFault('EXISTS', () => shelf.receive(one, { under: 0, last, token: other })).hint)
  }
  for (const under of [2, 3, 1000]) {
    const { message } = throwsFault('MISSING', () => shelf.receive(one, { under, last: false, token }))
    assert.is(message, `no chain one of ${under} rounds is here`)
  }
  const plain = shelf.receive(one)
  assert.not(plain.owns)
  assert.ok(throwsFault('EXISTS', () => plain.sink).hint)
  throwsFault('EXISTS', () => plain.seal())
  await rejectsFault('EXISTS', plain.complete())
  plain.drop()
  assert.is(pool.used, used, 'the chain is as it was')
  ;(await arrive(shelf, { ...end, ...part('c', [[1, 1, parent]]) }, 1, true)).seal()
  assert.equal([...pagesOf(await within(shelf.find(one, 0))).values()], [pageOf('a', 1)])
})

test('an owner who begins anew gets a new chain, and the memory of the old one is free', async () => {
  const pool = new Pool(4 * EXTENT)
  const shelf = new Snapshots(pool)
  for (let again = 0; again < 5; again++) {
    await round(shelf, part('a', [[0, 200, present]]), 0)
    await round(shelf, second, 1)
  }
  const full = { ...part('z', [[5, 1, present]]), 'inventory.img': inventory }
  ;(await arrive(shelf, full, 0, true)).seal()
  assert.equal([...pagesOf(await within(shelf.find(one, 0))).keys()], [5])
  assert.is(pool.used, 2 * EXTENT)
  throwsFault('EXISTS', () => shelf.receive(one, { under: 0, last: false, token }))
})

test('while a part arrives nobody else has the id, and the chain is not there for a second part', async () => {
  const shelf = new Snapshots(new Pool(8 * EXTENT))
  await round(shelf, first, 0)
  const waiting = shelf.receive(one)
  throwsFault('MISSING', () => shelf.receive(one, { under: 2, last: false, token }))
  const growing = shelf.receive(one, { under: 1, last: false, token })
  throwsFault('EXISTS', () => shelf.receive(one, { under: 1, last: false, token }))
  throwsFault('EXISTS', () => waiting.join({ under: 1, last: false, token }))
  waiting.drop()
  put(growing.sink, second)
  await growing.complete()
  growing.seal()
  growing.drop()
  throwsFault('MISSING', () => shelf.receive(one, { under: 1, last: false, token }))
  ;(await arrive(shelf, end, 2, true)).seal()
  assert.ok(shelf.has(one))
})

test('a part that fails takes the whole chain with it', async () => {
  const pool = new Pool(8 * EXTENT)
  const shelf = new Snapshots(pool)
  for (const last of [false, true]) {
    await round(shelf, first, 0)
    const cut = shelf.receive(one, { under: 1, last, token })
    put(cut.sink, second)
    cut.drop()
    assert.is(pool.used, 0)
    throwsFault('MISSING', () => shelf.receive(one, { under: 1, last, token }))
    await round(shelf, first, 0)
    const bad = shelf.receive(one, { under: 1, last, token })
    put(bad.sink, { ...part('b', [[7, 1, parent]]), 'inventory.img': inventory })
    await rejectsFault('MISSING', bad.complete())
    bad.drop()
    assert.is(pool.used, 0)
  }
})

test('what rounds had that the last does not need is given back after it was sealed', async () => {
  const pool = new Pool(8 * EXTENT)
  const shelf = new Snapshots(pool)
  await round(shelf, part('a', [[0, 1500, present]]), 0)
  ;(await arrive(shelf, { ...part('b', [[9, 1, parent]]), 'inventory.img': inventory }, 1, true)).seal()
  await eventually(() => pool.used === EXTENT + 4096 || undefined, 'the return of what is not needed')
  const found = await within(shelf.find(one, 0))
  const done = found.use()
  const [piece] = found.images.get('pages-1.img' as never)?.pieces ?? []
  assert.ok(piece !== undefined)
  found.release(piece)
  found.release(piece)
  shelf.remove(one)
  done()
  assert.is(pool.used, 0)
})

test('when memory runs out the chain that was idle longest goes first, and one that was not idle enough stays', async () => {
  const pool = new Pool(5 * EXTENT)
  const dropped: string[] = []
  const shelf = new Snapshots(pool, { idleMs: 60, onDropped: (id, ms) => dropped.push(`${id} ${ms >= 60}`) })
  await round(shelf, first, 0)
  const later = shelf.receive(two, { under: 0, last: false, token })
  put(later.sink, first)
  await later.complete()
  later.seal()
  shelf.receive(snapshotId('three'))
  assert.is(shelf.counts.chains, 2)
  throwsFault('MEMORY', () => shelf.receive(snapshotId('four')))
  assert.equal(dropped, [])
  await setTimeout(70)
  shelf.pinned.add(one).add(two)
  throwsFault('MEMORY', () => shelf.receive(snapshotId('four')), 'pinned')
  shelf.pinned.clear()
  shelf.receive(snapshotId('four'))
  assert.equal(dropped, ['one true'])
  throwsFault('MISSING', () => shelf.receive(one, { under: 1, last: false, token }))
  shelf.receive(two, { under: 1, last: false, token })
  // One that grows is not idle.
  shelf.receive(snapshotId('five'))
  throwsFault('MEMORY', () => shelf.receive(snapshotId('six')))
  assert.equal(dropped, ['one true'])
})

test('what lies here is told, and a chain is removed by its id', async () => {
  const pool = new Pool(8 * EXTENT)
  const shelf = new Snapshots(pool)
  const told = () => shelf.all.map(({ id, state, count, sink }) => [id, state, count, sink.held])
  await round(shelf, first, 0)
  await round(shelf, second, 1)
  const arriving = shelf.receive(two)
  assert.equal(told(), [
    ['two', 'arriving', 0, EXTENT],
    ['one', 'chain', 2, pool.used - EXTENT],
  ])
  put(arriving.sink, { 'inventory.img': inventory })
  await arriving.complete()
  arriving.seal()
  const done = (await within(shelf.find(two, 0))).use()
  const three = snapshotId('three')
  const failing = shelf.receive(three)
  for (const id of [one, two, three]) shelf.pinned.add(id)
  assert.equal([shelf.removeChain(two), shelf.removeChain(one), shelf.removeChain(one)], [false, true, false])
  failing.drop()
  assert.equal([...shelf.pinned], [two])
  assert.equal(told(), [['two', 'sealed', 1, EXTENT]])
  shelf.remove(two)
  assert.is(shelf.pinned.size, 0)
  assert.equal(told(), [['two', 'leaving', 1, EXTENT]])
  done()
  assert.equal([told(), pool.used], [[], 0])
})

test.run()
