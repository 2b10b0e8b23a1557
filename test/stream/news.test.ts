import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openNews } from '../../lib/stream/news.ts'

const test = suite('stream/news')

test('whoever waits for the next is called once, and not at all when it was forgotten', () => {
  const news = openNews()
  let heard = 0
  const forget = [1, 2, 3].map(() => news.next(() => heard++))
  forget[1]?.()
  news.tell()
  news.tell()
  assert.is(heard, 2)
})

test.run()
