import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeDumpStats } from '../../lib/format/stats.ts'
import { onlyFaults, throwsFault } from '../expect.ts'

const test = suite('format/stats')

/**
 * service magic, stats magic, size; field 1 {freezing 300, frozen 150000, memdump 7, memwrite 5, two fields unknown
 * here}.
 */
const STATS = '40591055 06330957 13000000 0a11 08ac02 10f09309 1807 2005 2864 9a060161'

function fromHex(hex: string): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex')
}

test('reads the times of a dump', () => {
  assert.equal(decodeDumpStats(fromHex(STATS)), {
    freezingTime: 300,
    frozenTime: 150000,
    memdumpTime: 7,
    memwriteTime: 5,
  })
})

test('times that are not there are 0, other messages are passed over', () => {
  const none = { freezingTime: 0, frozenTime: 0, memdumpTime: 0, memwriteTime: 0 }
  assert.equal(decodeDumpStats(fromHex('40591055 06330957 00000000')), none)
  assert.equal(decodeDumpStats(fromHex('40591055 06330957 00000000 1202 0801')), none)
})

test('refuses other files and damaged ones', () => {
  const stats = fromHex(STATS)
  for (let cut = 0; cut < stats.length; cut++) {
    if (cut !== 12) throwsFault('FORMAT', () => decodeDumpStats(stats.subarray(0, cut)), `cut at ${cut}`)
  }
  for (let at = 0; at < 8; at++) {
    const other = Buffer.from(stats)
    other.writeUInt8(other.readUInt8(at) ^ 1, at)
    throwsFault('FORMAT', () => decodeDumpStats(other), `byte ${at}`)
  }
})

test('random bytes after the magic, and changed files, give times or a Fault', () => {
  const magic = fromHex(STATS).subarray(0, 12)
  const random = fc.uint8Array({ maxLength: 80 }).map((bytes) => Buffer.concat([magic, bytes]))
  const changed = fc
    .array(fc.tuple(fc.nat(fromHex(STATS).length - 1), fc.nat(255)), { maxLength: 6 })
    .map((changes) => {
      const bytes = fromHex(STATS)
      for (const [at, value] of changes) bytes.writeUInt8(value, at)
      return bytes
    })
  let read = 0
  fc.assert(
    fc.property(fc.oneof(random, changed), (bytes) => {
      const stats = onlyFaults(() => decodeDumpStats(bytes))
      if (stats === undefined) return
      read++
      for (const time of Object.values(stats)) assert.ok(Number.isInteger(time) && time >= 0 && time < 2 ** 32)
    }),
    { numRuns: 5000 },
  )
  assert.ok(read > 100, `only ${read} were read`)
})

test.run()
