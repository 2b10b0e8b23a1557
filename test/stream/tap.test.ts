import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import type { Link } from '../../lib/stream/link.ts'
import { openTap } from '../../lib/stream/tap.ts'
import { rejectsFault, throwsFault, turns, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { bytesOf, pipeLinks, streamLinks } from './snapshots.ts'

const test = suite('stream/tap')

/** Tapped with tee and splice, and by reading and writing. */
const ways: Record<string, () => { from: Link; to: Link }> = { fast: pipeLinks, slow: streamLinks }

for (const [way, open] of Object.entries(ways)) {
  test(`${way}: shows the bytes and sends the same ones`, async () => {
    const before = openFds()
    const { from, to } = open()
    assert.is(from.outlet.splice !== undefined, way === 'fast')
    const tap = openTap(from.outlet, 10_000)
    const [pipe, into] = makePipe()
    const bytes = bytesOf('pages', 300_000)
    const writing = writeAll(into, bytes).then(() => closeFd(into))
    const seen: Buffer[] = []
    const reading = (async () => {
      const got = Buffer.alloc(bytes.length)
      await to.inlet.fill(got)
      return got
    })()
    const tapping = (async () => {
      for (;;) {
        const shown = tap.peek(pipe)
        if (shown === undefined) await turns(1)
        else if (shown.length === 0) return
        else {
          assert.ok(shown.length <= 10_000, `${shown.length} bytes at once`)
          seen.push(Buffer.from(shown))
          await tap.pass(pipe, shown, from.outlet)
        }
      }
    })()
    const [got] = await within(Promise.all([reading, tapping, writing]))
    assert.ok(Buffer.concat(seen).equals(bytes), 'what was shown')
    assert.ok(got.equals(bytes), 'what was sent')
    tap.close()
    closeFd(pipe)
    from.destroy()
    to.destroy()
    await turns()
    assert.is(openFds(), before, 'a descriptor is left')
  })

  test(`${way}: nothing yet is undefined, the end is empty, and stays so`, () => {
    const { from, to } = open()
    const tap = openTap(from.outlet, 100)
    const [pipe, into] = makePipe()
    assert.is(tap.peek(pipe), undefined)
    assert.is(tap.peek(pipe), undefined)
    libc.write(into, Buffer.from('abc'), 3)
    closeFd(into)
    assert.is(Buffer.from(tap.peek(pipe) ?? []).toString(), 'abc')
    libc.read(pipe, Buffer.alloc(3), way === 'fast' ? 3 : 0)
    assert.is(tap.peek(pipe)?.length, 0)
    assert.is(tap.peek(pipe)?.length, 0)
    tap.close()
    closeFd(pipe)
    const late = openTap(from.outlet, 100)
    throwsFault('IO', () => late.peek(pipe), 'a closed pipe')
    late.close()
    from.destroy()
    to.destroy()
  })

  test(`${way}: a link that is gone is a Fault`, async () => {
    const { from, to } = open()
    const tap = openTap(from.outlet, 100)
    const [pipe, into] = makePipe()
    libc.write(into, Buffer.from('abc'), 3)
    const shown = tap.peek(pipe) ?? Buffer.alloc(0)
    to.destroy()
    await turns()
    await rejectsFault('LINK', tap.pass(pipe, shown, from.outlet))
    tap.close()
    for (const fd of [pipe, into]) closeFd(fd)
    from.destroy()
  })
}

test.run()
