import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Account, ImageCharges, PeerMemory } from '../../lib/store/accounting.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import { throwsFault } from '../expect.ts'

const test = suite('store/accounting')
const MIB = 2 ** 20

test('bytes that are added count to the pool, and close gives them back once', () => {
  const pool = new Pool(4 * MIB)
  const charges = new Account(pool)
  charges.add(3 * MIB)
  charges.add(-MIB)
  assert.equal([charges.bytes, pool.used], [2 * MIB, 2 * MIB])
  throwsFault('MEMORY', () => charges.add(3 * MIB))
  assert.equal([charges.bytes, pool.used], [2 * MIB, 2 * MIB], 'a charge that is refused is none')
  charges.close()
  charges.close()
  assert.equal([charges.bytes, pool.used], [0, 0])
})

test('a closed account refuses more bytes, and ignores bytes that are given back twice', () => {
  const pool = new Pool(4 * MIB)
  const charges = new Account(pool)
  charges.add(MIB)
  charges.close()
  charges.add(-MIB)
  throwsFault('ABORTED', () => charges.add(1))
  assert.is(pool.used, 0)
})

test('the holder that gives way for a charge may be the one that asks: nothing stays counted', () => {
  const pool = new Pool(EXTENT)
  const [own, other] = [new Account(pool), new Account(pool)]
  own.add(EXTENT)
  pool.relief = () => {
    own.close()
    return true
  }
  throwsFault('ABORTED', () => own.add(MIB))
  assert.equal([own.bytes, pool.used], [0, 0])
  other.add(EXTENT)
  assert.is(pool.used, EXTENT)
})

test('peers have a quarter of the pool, at least 16 MiB of it and at most 128', () => {
  for (const [pool, peers] of [
    [8, 8],
    [16, 16],
    [64, 16],
    [256, 64],
    [512, 128],
    [8192, 128],
  ] as const) {
    assert.is(new PeerMemory(new Pool(pool * MIB)).limit, peers * MIB, `of ${pool} MiB`)
  }
})

test('all peers share one budget: one that asks for more than is left is refused, and holds what it had', () => {
  const pool = new Pool(64 * MIB)
  const peers = new PeerMemory(pool)
  const each = Array.from({ length: 16 }, () => peers.open())
  for (const one of each) one.add(MIB)
  assert.equal([peers.used, pool.used], [16 * MIB, 16 * MIB])
  const fault = throwsFault('MEMORY', () => each[0]?.add(1))
  assert.match(fault.hint ?? '', '--max-memory')
  assert.equal([peers.used, pool.used, each[0]?.bytes], [16 * MIB, 16 * MIB, MIB])
  each[1]?.close()
  each[0]?.add(MIB)
  assert.is(peers.used, 16 * MIB)
  for (const one of each) one.close()
  assert.equal([peers.used, pool.used], [0, 0])
})

test('where the pool is full of images no peer gets more, and its budget is as it was', () => {
  const pool = new Pool(16 * MIB)
  const peers = new PeerMemory(pool)
  for (let count = 0; count < 7; count++) pool.take()
  const one = peers.open()
  one.add(2 * MIB)
  throwsFault('MEMORY', () => one.add(1))
  assert.equal([peers.used, one.bytes, pool.used], [2 * MIB, 2 * MIB, 16 * MIB])
  one.close()
  assert.equal([peers.used, pool.used], [0, 14 * MIB])
})

test('where the budget is used up peers give way, as many as it takes', () => {
  const pool = new Pool(64 * MIB)
  const peers = new PeerMemory(pool)
  const still: Account[] = []
  let asked = 0
  peers.relief = () => {
    asked++
    const oldest = still.shift()
    oldest?.close()
    return oldest !== undefined
  }
  for (let count = 0; count < 8; count++) {
    const one = peers.open()
    one.add(2 * MIB)
    still.push(one)
  }
  const newcomer = peers.open()
  newcomer.add(5 * MIB)
  assert.equal([asked, still.length, newcomer.bytes, peers.used], [3, 5, 5 * MIB, 15 * MIB])
  throwsFault('MEMORY', () => newcomer.add(12 * MIB))
  assert.equal([still.length, newcomer.bytes, peers.used, pool.used], [0, 5 * MIB, 5 * MIB, 5 * MIB])
})

test('the peer that gives way for the budget may be the one that asks: nothing stays counted', () => {
  const pool = new Pool(64 * MIB)
  const peers = new PeerMemory(pool)
  const one = peers.open()
  peers.relief = () => {
    const had = one.bytes > 0
    one.close()
    return had
  }
  one.add(10 * MIB)
  throwsFault('ABORTED', () => one.add(10 * MIB))
  assert.equal([one.bytes, peers.used, pool.used], [0, 0, 0])
})

test('the peer that gives way for the pool may be the one that asks, too', () => {
  const pool = new Pool(16 * MIB)
  const peers = new PeerMemory(pool)
  for (let count = 0; count < 7; count++) pool.take()
  const one = peers.open()
  one.add(2 * MIB)
  pool.relief = () => {
    const had = one.bytes > 0
    one.close()
    return had
  }
  throwsFault('ABORTED', () => one.add(MIB))
  assert.equal([one.bytes, peers.used, pool.used], [0, 0, 14 * MIB])
})

test('images are charged in portions; the first extent of their snapshot covers the first portion', () => {
  const paid: number[] = []
  const pay = new ImageCharges({ charge: (bytes) => void paid.push(bytes) })
  const portion = 2 ** 18
  for (let images = 0; images < 128; images++) pay.opened(false)
  assert.equal(paid, [])
  pay.opened(false)
  assert.equal(paid, [portion])
  for (let images = 0; images < 64; images++) pay.opened(true)
  assert.equal(paid, [portion, portion])
  pay.forgotten()
  for (let images = 0; images < 3 * 128; images++) pay.opened(false)
  assert.equal(paid, [portion, portion], 'what was paid for is used again')
  pay.opened(false)
  assert.equal(paid, [portion, portion, portion])
})

test.run()
