/** When auto compresses: the choice as a table, and whole transfers on links that are made of numbers. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { CodecName } from '../../lib/format/enums.ts'
import { best, CompressionChooser, type Skill } from '../../lib/stream/adaptive-compression.ts'

const test = suite('stream/adaptive-compression')

/** From MiB a second. */
const perMs = (rate: number): number => (rate * 2 ** 20) / 1000
const skill = (rate: number, ratio: number): Skill => ({ rate: perMs(rate), left: 1 / ratio })

/** As measured on a heap of node, and on text. */
const heap = { zstd: skill(700, 6.5), lz4: skill(1080, 3.1) }
const text = { zstd: skill(540, 5.3), lz4: skill(620, 3.3) }
const random = { zstd: skill(3700, 1), lz4: skill(9800, 1) }

for (const [what, link, skills, lanes, expected] of [
  ['a heap at 10 Mbit/s', 1.2, heap, 1, 'zstd'],
  ['a heap at 1 Gbit/s', 119, heap, 1, 'zstd'],
  ['text at 1 Gbit/s', 119, text, 1, 'zstd'],
  ['a heap at 2.5 Gbit/s: both as fast as the codec, lz4 is faster', 298, heap, 1, 'lz4'],
  ['a heap at 2.5 Gbit/s with cores to spare', 298, heap, 3, 'zstd'],
  ['a heap at 5 Gbit/s: no codec is twice as fast', 596, heap, 1, undefined],
  ['a heap at 10 Gbit/s with cores to spare', 1192, heap, 3, 'lz4'],
  ['a heap on loopback', 2000, heap, 1, undefined],
  ['random bytes at 10 Mbit/s', 1.2, random, 1, undefined],
  ['what shrinks by a tenth', 1.2, { zstd: skill(700, 1.1), lz4: skill(1080, 1.05) }, 1, undefined],
] as const) {
  test(`${what}: ${expected ?? 'none'}`, () => {
    assert.is(best(perMs(link), skills, lanes), expected)
  })
}

interface World {
  /** MiB a second, at each moment: what the link carries, and what CRIU gives. */
  link: (ms: number) => number
  source: number
  skills: Record<CodecName, Skill>
  mib: number
}

/** Sends over a link that takes 8 MiB before it holds anybody up. Returns how long it took, and what was compressed. */
function transfer({ link, source, skills, mib }: World, auto: boolean) {
  const pace = new CompressionChooser(1, 0)
  let [now, backlog, packed] = [0, 0, 0]
  const pass = (ms: number): void => {
    backlog = Math.max(0, backlog - perMs(link(now)) * ms)
    now += ms
  }
  for (let chunk = 0; chunk < mib; chunk++) {
    const codec = auto ? pace.choose(now) : undefined
    pace.taken(2 ** 20)
    const out = codec === undefined ? 2 ** 20 : 2 ** 20 * skills[codec].left
    const ms = codec === undefined ? 0 : 2 ** 20 / skills[codec].rate
    if (codec !== undefined) {
      packed++
      pace.packed(codec, 2 ** 20, out, ms)
    }
    pass(Math.max(1000 / source, ms))
    const waits = now
    while (backlog + out > 8 * 2 ** 20) pass(0.1)
    backlog += out
    pace.sent(out, now - waits + 0.05)
  }
  while (backlog > 0) pass(0.1)
  return { ms: now, packed: packed / mib }
}

/** How many times faster auto is. */
function gain(world: World): { times: number; packed: number } {
  const { ms, packed } = transfer(world, true)
  return { times: transfer(world, false).ms / ms, packed }
}

const gigabyte = { source: 1500, skills: heap, mib: 1024 }

test('a link of 1 Gbit/s: nearly everything is compressed', () => {
  const { times, packed } = gain({ ...gigabyte, link: () => 119 })
  assert.ok(times > 4 && packed > 0.9, `${times} times, ${packed}`)
})

test('a slow link: the first few MiB are not', () => {
  const { times, packed } = gain({ ...gigabyte, mib: 256, link: () => 10 })
  assert.ok(times > 4 && packed > 0.9, `${times} times, ${packed}`)
})

test('a link that is faster than CRIU: nothing is compressed', () => {
  assert.equal(transfer({ ...gigabyte, link: () => 3000 }, true).packed, 0)
})

test('a link that is slower than CRIU and faster than a codec: nothing is compressed', () => {
  assert.equal(transfer({ ...gigabyte, link: () => 1000 }, true).packed, 0)
})

test('random bytes: nothing is won, and nothing lost', () => {
  const { times } = gain({ ...gigabyte, skills: random, link: () => 119 })
  assert.ok(times > 0.95, `${times} times`)
})

test('a receiver that hesitates for once changes nothing', () => {
  const hesitates = (ms: number): number => (ms > 200 && ms < 230 ? 10 : 3000)
  assert.equal(transfer({ ...gigabyte, link: hesitates }, true).packed, 0)
})

test('a link that was slow for a while is found to be fast again', () => {
  const world = { ...gigabyte, mib: 4096, link: (ms: number) => (ms < 500 ? 50 : 3000) }
  const { times, packed } = gain(world)
  assert.ok(packed > 0.05 && packed < 0.4, `${packed} was compressed`)
  assert.ok(times > 0.9, `${times} times`)
})

test('a link that becomes slow is noticed', () => {
  const { times, packed } = gain({ ...gigabyte, mib: 2048, link: (ms) => (ms < 300 ? 3000 : 50) })
  assert.ok(times > 3 && packed > 0.5, `${times} times, ${packed}`)
})

test('a source that is slower than the link leaves it alone', () => {
  assert.equal(transfer({ ...gigabyte, source: 80, mib: 256, link: () => 119 }, true).packed, 0)
})

/** Time in windows of 25 ms, each with a rate in MiB a second. */
function windows() {
  const pace = new CompressionChooser(1, 0)
  let now = 0
  const next = (rate: number, ms: number): CodecName | undefined => {
    pace.taken(perMs(rate) * 25)
    pace.sent(perMs(rate) * 25, ms)
    now += 25
    return pace.choose(now)
  }
  return { pace, heldUp: (rate: number) => next(rate, 20), free: (rate: number) => next(rate, 1) }
}

test('compressing that wins nothing is given up, but not at once', () => {
  const { heldUp, free } = windows()
  for (let time = 0; time < 3; time++) assert.is(heldUp(100), undefined)
  assert.is(heldUp(100), 'zstd')
  for (let time = 0; time < 3; time++) assert.is(free(90), 'zstd')
  assert.is(free(400), 'zstd')
  for (let time = 0; time < 3; time++) assert.is(free(90), 'zstd')
  assert.is(free(90), undefined)
})

test('of the windows in which a link holds us up the best counts', () => {
  const { heldUp, free } = windows()
  for (const rate of [100, 20, 500, 30, 100, 40, 300, 20, 20, 600]) assert.is(heldUp(rate), undefined)
  for (let time = 0; time < 3; time++) assert.is(heldUp(20), undefined)
  assert.is(heldUp(20), 'zstd')
  const other = windows()
  for (let time = 0; time < 3; time++) other.heldUp(20)
  other.free(1000)
  assert.is(other.heldUp(20), undefined)
  assert.is(free(1000), 'zstd')
})

test('a link that was slow is asked again, and one answer is enough', () => {
  const { heldUp, free } = windows()
  for (let time = 0; time < 4; time++) heldUp(100)
  let mib = 0
  while (free(800) === 'zstd') mib += 800 * 0.025
  assert.ok(mib > 64 && mib < 200, `after ${mib} MiB`)
  assert.is(heldUp(400), undefined)
  assert.is(heldUp(110), 'zstd')
  const before = mib
  while (free(800) === 'zstd') mib += 800 * 0.025
  assert.ok(mib - before > 1.5 * before, 'the next time is later')
  assert.is(free(1000), undefined)
  assert.is(heldUp(110), undefined)
})

test('memory that does not shrink ends it, and later it is tried again', () => {
  const { pace, heldUp } = windows()
  for (let time = 0; time < 3; time++) heldUp(100)
  assert.is(heldUp(100), 'zstd')
  for (let time = 0; time < 30; time++)
    for (const codec of ['zstd', 'lz4'] as const) pace.packed(codec, 100, 100, 0.0002)
  assert.is(heldUp(100), undefined)
  let waits = 0
  while (heldUp(100) === undefined) assert.ok(++waits < 20)
})

test.run()
