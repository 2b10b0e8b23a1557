import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { PAGE_BYTES } from '../../lib/format/pagemap.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { EXTENT, type Extent, Pool } from '../../lib/store/pool.ts'
import { throwsFault } from '../expect.ts'
import { eventually, run } from '../support/run.ts'

const test = suite('store/pool')

const zeros = Buffer.alloc(EXTENT)

function takeAll(count: number, pool: Pool): Extent[] {
  return Array.from({ length: count }, () => pool.take())
}

test('extents are 2 MiB, aligned, zero, apart from each other, and where their address says', () => {
  const pool = new Pool(40 * EXTENT)
  // More than one region of 32 extents.
  const extents = takeAll(40, pool)
  assert.is(new Set(extents.map(({ address }) => address)).size, 40)
  extents.forEach(({ address, window }, index) => {
    assert.is(address % BigInt(EXTENT), 0n)
    assert.is(window.length, EXTENT)
    assert.is(window[0], 0)
    assert.is(window[EXTENT - 1], 0)
    window[0] = index
    window[EXTENT - 1] = index
  })
  extents.forEach(({ address, window }, index) => {
    assert.equal([window[0], window[EXTENT - 1]], [index, index])
    assert.equal([...libc.view(address, 1)], [index])
  })
})

test('regions grow, so that they are few', () => {
  const ends: bigint[] = []
  const pool = new Pool(2 ** 40)
  for (const { address } of takeAll(1024, pool)) {
    const before = ends.indexOf(address)
    if (before < 0) ends.push(address + BigInt(EXTENT))
    else ends[before] = address + BigInt(EXTENT)
  }
  // 64, 64, 128, 256, 512 and 1024 MiB; neighbours may touch.
  assert.ok(ends.length <= 6, `${ends.length} regions`)
})

test('the limit holds to the byte, and a take beyond it throws MEMORY and changes nothing', () => {
  const pool = new Pool(3 * EXTENT)
  takeAll(3, pool)
  assert.equal([pool.limit, pool.used], [3 * EXTENT, 3 * EXTENT])
  const fault = throwsFault('MEMORY', () => pool.take())
  assert.match(fault.message, '6.00 MiB of 6.00 MiB')
  assert.match(fault.hint ?? '', '--max-memory')
  assert.is(pool.used, 3 * EXTENT)
  throwsFault('MEMORY', () => new Pool(EXTENT - 1).take())
  throwsFault('MEMORY', () => new Pool(0).take())
  const less = new Pool(2 * EXTENT - 1)
  less.take()
  throwsFault('MEMORY', () => less.take())
})

test('an extent that is given back is used again, and reads zeros', () => {
  const pool = new Pool(2 * EXTENT)
  const [one, two] = [pool.take(), pool.take()]
  one.window.fill(1)
  two.window.fill(2)
  pool.give(one)
  assert.is(pool.used, EXTENT)
  assert.ok(zeros.equals(one.window), 'a window that is still held reads zeros')
  assert.is(two.window[0], 2, 'the neighbour stays')
  const again = pool.take()
  assert.is(again.address, one.address)
  assert.ok(zeros.equals(again.window))
  throwsFault('MEMORY', () => pool.take())
})

test('memory that is given back does not grow the process', () => {
  const pool = new Pool(EXTENT)
  const addresses = new Set<bigint>()
  for (let round = 0; round < 100; round++) {
    const extent = pool.take()
    addresses.add(extent.address)
    extent.window.fill(round)
    pool.give(extent)
  }
  assert.is(addresses.size, 1)
  assert.is(pool.used, 0)
})

test('pages of an extent go back once each, count as free, and the extent is whole again when it is taken anew', () => {
  const pool = new Pool(2 * EXTENT)
  const [one, two] = [pool.take(), pool.take()]
  for (const { window } of [one, two]) window.fill(1)
  throwsFault('MEMORY', () => pool.take())
  assert.not(pool.givePages(one, 3, 2))
  assert.is(pool.used, 2 * EXTENT - 2 * 4096)
  assert.not(pool.givePages(one, 2, 4))
  assert.is(pool.used, 2 * EXTENT - 4 * 4096, 'those that were given already do not count again')
  const kept = [one.window[2 * 4096 - 1], one.window[2 * 4096], one.window[6 * 4096 - 1], one.window[6 * 4096]]
  assert.equal(kept, [1, 0, 0, 1])
  assert.ok(pool.givePages(one, 0, 512), 'that was the last')
  assert.is(pool.used, EXTENT)
  pool.give(one)
  assert.is(pool.used, EXTENT)
  const again = pool.take()
  assert.is(again.address, one.address)
  assert.is(pool.used, 2 * EXTENT)
  assert.not(pool.givePages(again, 0, 1), 'it has no holes from before')
  assert.is(pool.used, 2 * EXTENT - 4096)
  pool.give(again)
  pool.give(two)
  assert.is(pool.used, 0)
})

/** Bytes of this process that are in memory. */
const resident = (): number => Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096

test('shared or pinned pages leave the huge page whole; pages given back meanwhile go afterwards', () => {
  const pool = new Pool(4 * EXTENT)
  const extent = pool.take()
  const address = Number(extent.address)
  pool.pin(extent)
  pool.share(address, 2)
  pool.unpin(extent)
  pool.unshare([[address, 2 * PAGE_BYTES]])
  assert.is(extent.holes, undefined)
  pool.share(address, 1)
  pool.give(extent)
  assert.is(pool.used, PAGE_BYTES)
  pool.unshare([[address, PAGE_BYTES]])
  assert.is(pool.used, 0)
})

test('the reserve is faulted in before it is asked for, and again when it was given back', async () => {
  const least = 60 * 2 ** 20
  const before = resident()
  const pool = new Pool(64 * EXTENT, 32 * EXTENT)
  assert.is(pool.used, 0)
  await eventually(() => resident() - before > least || undefined, 'memory that was reserved')
  const taken = takeAll(32, pool)
  const more = takeAll(32, pool)
  assert.ok(resident() - before < 80 * 2 ** 20, 'what was not reserved costs nothing yet')
  for (const extent of taken) extent.window.fill(1)
  for (const extent of [...taken, ...more]) pool.give(extent)
  await eventually(() => resident() - before > least || undefined, 'memory that is reserved again')
  for (const extent of takeAll(32, pool)) assert.ok(zeros.equals(extent.window), 'and reads zeros')
})

test('where nothing more can be mapped, reserve resolves, take throws MEMORY, and the count is right', async () => {
  const program = join(import.meta.dirname, 'no-address-space.ts')
  const { code, stdout, stderr } = await run(process.execPath, ['--import', 'tsx', program])
  assert.is(code, 0, stderr)
  // One region is 32 extents; one of them is the first of the snapshot.
  assert.equal(JSON.parse(stdout.toString()), { ready: 23, used: 32, fault: 'MEMORY' })
})

test.run()
