import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Link } from '../../lib/stream/link.ts'
import { TargetLink } from '../../lib/stream/resuming-receiver.ts'
import { rejectsFault, within } from '../expect.ts'
import { cable } from './cables.ts'

const test = suite('stream/resuming-receiver')
const MIB = 2 ** 20

/** The link of an end, and what it reported. */
function meter(link: Link) {
  const told: number[] = []
  const { link: end } = new TargetLink(link, (bytes) => void told.push(bytes))
  return { told, sum: () => told.reduce((sum, bytes) => sum + bytes, 0), end }
}

test('bytes are reported as they are read, by either call', async () => {
  const { near, far } = cable()
  const { told, end } = meter(near)
  await far.outlet.send(Buffer.alloc(10))
  assert.is(await within(end.inlet.read(Buffer.alloc(100))), 10)
  await far.outlet.send(Buffer.alloc(3))
  await far.outlet.send(Buffer.alloc(4))
  assert.ok(await within(end.inlet.fill(Buffer.alloc(7))))
  assert.equal(told, [10, 3, 4])
})

test('bytes that are sent are reported when they are taken, a part at a time', async () => {
  const { near, far } = cable({ room: MIB / 2 })
  const { sum, end, told } = meter(near)
  const bytes = Buffer.alloc(4 * MIB).map((_, at) => at >> 8)
  const sending = end.outlet.send(bytes)
  const got = Buffer.alloc(bytes.length)
  let taken = 0
  const part = got.subarray(0, 3 * MIB)
  await within(far.inlet.fill(part))
  taken += part.length
  assert.ok(sum() >= taken - MIB / 4 && sum() <= taken + MIB, `told ${sum()} of ${taken} taken`)
  await within(far.inlet.fill(got.subarray(taken)))
  await within(sending)
  assert.is(sum(), bytes.length)
  assert.ok(told.length >= 16, 'many parts')
  assert.ok(got.equals(bytes))
})

test('bytes that are not taken are not reported', async () => {
  const { near, far, cut } = cable({ room: 1 })
  const { told, end } = meter(near)
  const first = end.outlet.send(Buffer.alloc(MIB))
  first.catch(() => {})
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.ok(told.length <= 1, `${told.length} parts were told`)
  cut()
  far.destroy()
  await rejectsFault('LINK', first)
  assert.ok(told.length <= 1)
})

test('the link below is told when more follows, also between the parts of one send', async () => {
  const said: [number, boolean][] = []
  const link = {
    ...cable().near,
    outlet: {
      send: async (bytes: Uint8Array, more = false) => void said.push([bytes.length, more]),
      finish: async () => {},
    },
  }
  const { end } = meter(link)
  await end.outlet.send(Buffer.alloc(600 * 1024), true)
  await end.outlet.send(Buffer.alloc(300 * 1024))
  const step = 256 * 1024
  assert.equal(said, [
    [step, true],
    [step, true],
    [88 * 1024, true],
    [step, true],
    [44 * 1024, false],
  ])
})

test.run()
