import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openNews } from '../../lib/stream/condition.ts'
import { waits, within } from '../expect.ts'

const test = suite('stream/news')

test('all who wait are told once, and who comes after it waits for the next', async () => {
  const news = openNews()
  const first = [news.told(), news.told()]
  assert.ok(await waits(Promise.race(first)))
  news.tell()
  await within(Promise.all(first))
  const next = news.told()
  assert.ok(await waits(next))
  news.tell()
  await within(next)
})

test.run()
