import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { frameWriter } from '../../lib/stream/frames.ts'
import { Part } from '../../lib/stream/image-part.ts'
import { RateLimit, rateLimit } from '../../lib/stream/rate-limit.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import { within } from '../expect.ts'
import { contents, id, image, pipeLinks, pool, receive, sourceOf } from './snapshots.ts'

const test = suite('stream/rate-limit')
const MIB = 2 ** 20

test('a frame is as large as what goes out in a twentieth of a second, within bounds', () => {
  assert.is(new RateLimit(1000).most, 16_384)
  assert.is(new RateLimit(2_000_000).most, 100_000)
  assert.is(new RateLimit(10 ** 12).most, MIB)
})

test('turns come no faster than the rate, for all who share it', async () => {
  const limit = new RateLimit(MIB)
  const begun = performance.now()
  const one = async (): Promise<void> => {
    for (let turn = 0; turn < 8; turn++) await limit.turn(16_384)
  }
  await within(Promise.all([one(), one(), one()]))
  // The last turn's bytes, and what may be made up for, do not count.
  assert.ok(performance.now() - begun >= ((23 * 16_384) / MIB) * 1000 - 60)
})

test('time that was not used is not saved up', async () => {
  const limit = new RateLimit(MIB)
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
    const limit = new RateLimit(4 * MIB)
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

test('a part waits before it begins, for all its bytes', async () => {
  const events: string[] = []
  class Recorded extends RateLimit {
    override async turn(bytes: number): Promise<void> {
      events.push(`turn ${bytes}`)
    }
  }
  const stage = rateLimit(new Recorded(MIB))
  stage.on('data', (part: Part) => events.push(`${part.frames.length} frames`))
  const data = { type: 'data', channel: 1, offset: 0, length: 700 } as const
  stage.write(new Part([{ frame: { type: 'got', offset: 1 } }, { frame: data, bytes: Buffer.alloc(700) }]))
  stage.write(new Part([{ frame: { type: 'unchecked' } }]))
  await new Promise((resolve) => stage.end(resolve))
  assert.equal(events, ['turn 752', '2 frames', 'turn 28', '1 frames'])
})

test.run()
