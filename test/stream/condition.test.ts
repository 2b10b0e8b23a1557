import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openCondition } from '../../lib/stream/condition.ts'
import { waits, within } from '../expect.ts'

const test = suite('stream/condition')

test('all who wait are told once, and who comes after it waits for the next', async () => {
  const news = openCondition()
  const first = [news.wait(), news.wait()]
  assert.ok(await waits(Promise.race(first)))
  news.notify()
  await within(Promise.all(first))
  const next = news.wait()
  assert.ok(await waits(next))
  news.notify()
  await within(next)
})

test.run()
