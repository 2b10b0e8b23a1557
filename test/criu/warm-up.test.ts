import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { runWarmUp, warmUp } from '../../lib/criu/warm-up.ts'
import { within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'

const test = suite('criu/warm-up')

test('a snapshot is dumped, sent, received and restored, and leaves nothing open', async () => {
  await within(runWarmUp())
  const before = openFds()
  await within(runWarmUp())
  assert.is(openFds(), before)
})

test('one warm-up is enough', async () => {
  const first = warmUp()
  assert.is(warmUp(), first)
  await within(first)
  assert.is(warmUp(), first)
})

test.run()
