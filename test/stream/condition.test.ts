import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openCondition } from '../../lib/stream/condition.ts'
import { waits, within } from '../expect.ts'

const test = suite('stream/condition')

test('a notification wakes all who wait, and who comes after it waits for the next', async () => {
  const condition = openCondition()
  const first = [condition.wait(), condition.wait()]
  assert.ok(await waits(Promise.race(first)))
  condition.notify()
  await within(Promise.all(first))
  const next = condition.wait()
  assert.ok(await waits(next))
  condition.notify()
  await within(next)
})

test.run()
