/** Connections that join, and those that do not come. test/scripts/connections.test.ts runs the commands with them. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { ConnectionGroups, connectJoined } from '../../lib/stream/connection-groups.ts'
import type { Link } from '../../lib/stream/link.ts'
import { TargetLink } from '../../lib/stream/resuming-receiver.ts'
import { rejectsFault, waits, within } from '../expect.ts'
import { cable } from './cables.ts'

const test = suite('stream/connection-groups')
const token = Buffer.alloc(16, 7)
const member = () => new TargetLink(cable().far)

test('connections that wait for one which does not come are refused, and the next ones begin anew', async () => {
  const admitted: number[] = []
  const groups = new ConnectionGroups(30, (_link, count) => admitted.push(count))
  const [first, second] = [0, 1].map((index) => groups.join({ token, index, count: 3 }, member(), 'a'))
  assert.match((await rejectsFault('TIMEOUT', first as Promise<void>)).message, /only some of 3 connections/)
  await rejectsFault('TIMEOUT', second as Promise<void>)
  const both = [0, 1].map((index) => groups.join({ token, index, count: 2 }, member(), 'a'))
  await within(Promise.all(both))
  assert.equal(admitted, [2])
})

test('sets of connections do not mix, and one that does not belong changes nothing', async () => {
  const admitted: number[] = []
  const groups = new ConnectionGroups(20_000, (_link, count) => admitted.push(count))
  const other = groups.join({ token: Buffer.alloc(16, 8), index: 1, count: 2 }, member(), 'a')
  const first = groups.join({ token, index: 0, count: 2 }, member(), 'a')
  await rejectsFault('FORMAT', groups.join({ token, index: 0, count: 2 }, member(), 'a'))
  await rejectsFault('FORMAT', groups.join({ token, index: 1, count: 3 }, member(), 'a'))
  assert.ok(await waits(Promise.race([first, other])))
  await within(groups.join({ token, index: 1, count: 2 }, member(), 'a'))
  await within(first)
  assert.equal(admitted, [2])
  assert.ok(await waits(other))
})

test('64 may wait; then the oldest group is given up, and never that of the newest connection', async () => {
  const groups = new ConnectionGroups(300, () => {})
  const join = (n: number, index = 0) => groups.join({ token: Buffer.alloc(16, n), index, count: 2 }, member(), 'a')
  const oldest = rejectsFault('LIMIT', join(0))
  const [second, ...others] = Array.from({ length: 63 }, (_, n) => rejectsFault('TIMEOUT', join(n + 1)))
  const last = join(64)
  assert.match((await oldest).message, /64 connections wait/)
  // The last group is completed, though 64 wait.
  await within(Promise.all([join(64, 1), last]))
  await Promise.all([second, ...others])
  await rejectsFault('TIMEOUT', join(65))
})

test('when one cannot connect the others stop trying, and those that are connected are closed', async () => {
  const made: { link: Link; destroyed: boolean }[] = []
  let asked = 0
  const connect = async (signal: AbortSignal): Promise<Link> => {
    const index = asked++
    if (index === 0) throw new Fault('LINK', 'nobody there')
    if (index === 1)
      return new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
    const { near } = cable()
    const one = { link: near, destroyed: false }
    const destroy = (): void => {
      one.destroyed = true
    }
    made.push(one)
    return { ...near, destroy }
  }
  const failed = await rejectsFault('LINK', connectJoined(4, connect, new AbortController().signal))
  assert.is(failed.message, 'nobody there')
  assert.equal(
    made.map(({ destroyed }) => destroyed),
    [true, true],
  )
})

test('a connection that breaks before it has joined fails the first read, and not the connecting', async () => {
  const link = await connectJoined(2, async () => cable({ up: 0 }).near, new AbortController().signal)
  const cables = [cable(), cable()]
  let next = 0
  const other = await connectJoined(
    2,
    async () => (cables[next++] as (typeof cables)[number]).near,
    new AbortController().signal,
  )
  cables[1]?.cut()
  await rejectsFault('LINK', other.inlet.read(Buffer.alloc(1)))
  link.destroy(new Fault('ABORTED', 'over'))
  await rejectsFault('ABORTED', link.inlet.read(Buffer.alloc(1)))
})

test.run()
