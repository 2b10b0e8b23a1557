/** Bytes in pairs of pipes: they come out from any position, and as often as they are asked for. */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { check, enlargePipe, type Fd, makePipe, queued } from '../../lib/kernel/fd.ts'
import { read } from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { SpliceBuffer, type SplicedRange } from '../../lib/stream/splice-buffer.ts'
import { openPipes } from '../kernel/fds.ts'
import { bytesOf } from './snapshots.ts'

const test = suite('stream/splice-buffer')

function drain(pipe: Fd, bytes: number): Buffer {
  const into = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; ) at += check(read(pipe, into.subarray(at), bytes - at), 'read')
  return into
}

test('what was taken comes out again, from any position, until it is forgotten', async () => {
  const open = openPipes()
  const step = fc.record({ bytes: fc.integer({ min: 1, max: 400_000 }), most: fc.integer({ min: 1, max: 500_000 }) })
  const places = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 4 })
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 8 }), places, async (steps, asked) => {
      const [out, into] = makePipe()
      enlargePipe(out)
      const spliced = new SpliceBuffer()
      try {
        const sent: Buffer[] = []
        let to = 24
        const ranges: SplicedRange[] = []
        for (const [turn, { bytes, most }] of steps.entries()) {
          const next = bytesOf(String(turn), bytes)
          await writeAll(into, next)
          const taken = spliced.take(out, most, to)
          assert.is(taken, Math.min(bytes, most))
          assert.is(queued(out), bytes - taken, 'the rest stays in the pipe')
          drain(out, bytes - taken)
          sent.push(next.subarray(0, taken))
          ranges.push(spliced.rangeAt(to + taken - 1) as SplicedRange)
          assert.is(spliced.rangeAt(to + taken), undefined)
          assert.is(spliced.nextRange(to), to)
          to += taken + 24
        }
        for (const [turn, range] of ranges.entries()) {
          const { from, to: end } = range
          const bytes = sent[turn] as Buffer
          for (const place of asked) {
            const at = from + Math.floor((end - from - 1) * place)
            const pipe = spliced.pipeFrom(range, at)
            const part = Math.ceil((end - at) / 2)
            assert.ok(drain(pipe, part).equals(bytes.subarray(at - from, at - from + part)))
          }
          assert.ok(drain(spliced.pipeFrom(range, from), end - from).equals(bytes))
          spliced.forget(end - 1)
          assert.is(spliced.rangeAt(from), range, 'the last byte is still wanted')
          spliced.forget(end)
          assert.is(spliced.rangeAt(from), undefined)
        }
      } finally {
        spliced.close()
        closeFd(out)
        closeFd(into)
      }
    }),
    { numRuns: 60 },
  )
  assert.is(openPipes(), open, 'every pipe is closed')
})

test('at most 16 ranges are kept, until one is forgotten', async () => {
  const [out, into] = makePipe()
  const spliced = new SpliceBuffer()
  try {
    const bytes = bytesOf('x', 4096)
    for (let n = 0; n < 16; n++) {
      await writeAll(into, bytes)
      assert.is(spliced.take(out, 4096, n * 4096), 4096)
    }
    await writeAll(into, bytes)
    assert.is(spliced.take(out, 4096, 16 * 4096), 0)
    assert.is(queued(out), 4096)
    spliced.forget(4096)
    assert.is(spliced.take(out, 4096, 16 * 4096), 4096)
    assert.ok(drain(spliced.pipeFrom(spliced.rangeAt(16 * 4096) as SplicedRange, 16 * 4096), 4096).equals(bytes))
  } finally {
    spliced.close()
    closeFd(out)
    closeFd(into)
  }
})

test('few bytes are not worth it', async () => {
  const [out, into] = makePipe()
  enlargePipe(out)
  const spliced = new SpliceBuffer()
  try {
    await writeAll(into, Buffer.alloc(65_535))
    assert.is(spliced.isWorth(out), false)
    await writeAll(into, Buffer.alloc(1))
    assert.is(spliced.isWorth(out), true)
  } finally {
    spliced.close()
    closeFd(out)
    closeFd(into)
  }
})

test.run()
