import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { play, rehearse } from '../../lib/criu/warm-up.ts'
import { within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'

const test = suite('criu/warm-up')

test('a snapshot goes the whole way, and leaves nothing open', async () => {
  await within(play())
  const before = openFds()
  await within(play())
  assert.is(openFds(), before)
})

test('one rehearsal is enough', async () => {
  const first = rehearse()
  assert.is(rehearse(), first)
  await within(first)
  assert.is(rehearse(), first)
})

test.run()
