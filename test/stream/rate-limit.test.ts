import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { frameWriter } from '../../lib/stream/frames.ts'
import type { Outlet } from '../../lib/stream/link.ts'
import { limited, type RateLimit, rateLimit } from '../../lib/stream/rate-limit.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import { within } from '../expect.ts'
import { contents, id, image, pipeLinks, pool, receive, sourceOf } from './snapshots.ts'

const test = suite('stream/rate-limit')
const MIB = 2 ** 20

test('a frame is as large as what goes out in a twentieth of a second, within bounds', () => {
  assert.is(rateLimit(1000).most, 16_384)
  assert.is(rateLimit(2_000_000).most, 100_000)
  assert.is(rateLimit(10 ** 12).most, MIB)
})

test('turns come no faster than the rate, for all who share it', async () => {
  const limit = rateLimit(MIB)
  const begun = performance.now()
  const one = async (): Promise<void> => {
    for (let turn = 0; turn < 8; turn++) await limit.turn(16_384)
  }
  await within(Promise.all([one(), one(), one()]))
  // The last turn's bytes, and what may be made up for, do not count.
  assert.ok(performance.now() - begun >= ((23 * 16_384) / MIB) * 1000 - 60)
})

test('time that was not used is not saved up', async () => {
  const limit = rateLimit(MIB)
  await limit.turn(1)
  await new Promise((resolve) => setTimeout(resolve, 300))
  const begun = performance.now()
  for (let turn = 0; turn < 20; turn++) await limit.turn(16_384)
  assert.ok(performance.now() - begun >= ((19 * 16_384) / MIB) * 1000 - 60)
})

for (const compress of [undefined, 'lz4'] as const) {
  test(`a snapshot takes its time, ${compress ?? 'plain'}: what is on the link counts, in small frames`, async () => {
    const images = [image('a.img', MIB, 'pipe'), image('b.img', MIB), image('inventory.img', 9)]
    const { from, to } = pipeLinks()
    const sink = new MemorySnapshot(pool)
    const lengths: number[] = []
    const limit = rateLimit(4 * MIB)
    const begun = performance.now()
    const sending = sendSnapshot(frameWriter(from.outlet), id, sourceOf(images), { limit, compress }).then(() =>
      from.destroy(),
    )
    const counted = {
      ...to.inlet,
      async fill(into: Uint8Array) {
        lengths.push(into.length)
        return to.inlet.fill(into)
      },
    }
    await within(Promise.all([sending, receive(counted, sink)]))
    assert.ok(performance.now() - begun >= 400, 'two MiB at four a second')
    assert.ok(Math.max(...lengths) <= limit.most, `a read of ${Math.max(...lengths)}`)
    for (const { name, bytes } of images) assert.ok(contents(sink).get(name)?.equals(bytes), name)
    to.destroy()
    sink.drop()
  })
}

test('a frame that has begun is not held up', async () => {
  const events: string[] = []
  const limit: RateLimit = {
    most: MIB,
    async turn(bytes) {
      events.push(`turn ${bytes}`)
    },
    more: (bytes) => void events.push(`more ${bytes}`),
  }
  const outlet: Outlet = {
    async send(bytes) {
      events.push(`send ${bytes.length}`)
    },
    async fillInPlace(_headBytes, _most, fill) {
      events.push(`fill ${fill(Buffer.alloc(9))?.bytes}`)
    },
    settle: async () => {},
    finish: async () => {},
  }
  const writer = limited(frameWriter(outlet, true), limit)
  await writer.send({ type: 'got', offset: 1 })
  await writer.exclusive(async (within) => {
    await within.send(Buffer.alloc(24), true)
    await within.send(Buffer.alloc(700))
    await within.fillInPlace?.(24, 9, () => ({ head: Buffer.alloc(24), bytes: 9 }))
    await within.fillInPlace?.(24, 9, () => undefined)
  })
  const plain = ['turn 28', 'send 28', 'turn 24', 'send 24', 'more 700', 'send 700']
  assert.equal(events, [...plain, 'turn 0', 'more 33', 'fill 9', 'turn 0', 'fill undefined'])
})

test.run()
