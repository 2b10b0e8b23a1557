import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { PAGE_BYTES as PAGE } from '../../lib/format/pagemap.ts'
import { type Run, zeroRuns } from '../../lib/stream/chunk-runs.ts'

const test = suite('stream/chunk-runs')

function runs(raw: Buffer): Run[] {
  return zeroRuns(raw, new Int32Array(raw.buffer, raw.byteOffset, Math.floor(raw.length / 4)), raw.length)
}

/** Pages as letters: `0` is zeros; of the others one word is not. */
function pages(letters: string, rest = 0): Buffer {
  const raw = Buffer.alloc(letters.length * PAGE + rest)
  for (const [index, letter] of [...letters].entries()) {
    const at = { f: 0, m: PAGE / 2, l: PAGE - 1, x: 1234 }[letter]
    if (at !== undefined) raw[index * PAGE + at] = 1
  }
  return raw
}

const run = (from: number, to: number, zero = false): Run => ({ from: from * PAGE, to: to * PAGE, zero })
const many = '0'.repeat(16)

test('long runs of zero pages are found, and short ones are not', () => {
  assert.equal(runs(pages('f')), [run(0, 1)])
  assert.equal(runs(pages(many)), [run(0, 16, true)])
  assert.equal(runs(pages(`x${many}0m`)), [run(0, 1), run(1, 18, true), run(18, 19)])
  assert.equal(runs(pages(`l${'0'.repeat(15)}f`)), [run(0, 17)])
  assert.equal(runs(pages(`${many}l${many}`)), [run(0, 16, true), run(16, 17), run(17, 33, true)])
  assert.equal(runs(Buffer.alloc(0)), [])
  assert.equal(runs(Buffer.alloc(PAGE - 1)), [{ from: 0, to: PAGE - 1, zero: false }])
  assert.equal(runs(pages(many, 5)), [run(0, 16, true), { from: 16 * PAGE, to: 16 * PAGE + 5, zero: false }])
})

test('a single byte anywhere is no zero page', () => {
  const raw = pages(many)
  for (let at = 0; at < 2 * PAGE; at += 7) {
    raw[at] = 1
    assert.ok(!runs(raw).some(({ from, to, zero }) => zero && from <= at && at < to), `byte ${at}`)
    raw[at] = 0
  }
})

test('runs lie side by side, and what they call zeros is zeros', () => {
  const letters = fc.array(fc.tuple(fc.constantFrom('0', 'f', 'm', 'l', 'x'), fc.nat(24)), { maxLength: 6 })
  let found = 0
  fc.assert(
    fc.property(letters, fc.nat(PAGE), (given, rest) => {
      const raw = pages(given.map(([letter, count]) => letter.repeat(count)).join(''), rest)
      let done = 0
      for (const { from, to, zero } of runs(raw)) {
        assert.is(from, done)
        assert.ok(to > from)
        done = to
        if (!zero) continue
        found++
        assert.ok(raw.subarray(from, to).every((byte) => byte === 0))
      }
      assert.is(done, raw.length)
    }),
    { numRuns: 200 },
  )
  assert.ok(found > 20, `only ${found} runs of zeros`)
})

test.run()
