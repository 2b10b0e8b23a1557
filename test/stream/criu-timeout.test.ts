import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Fault } from '../../lib/fault.ts'
import { openCondition } from '../../lib/stream/condition.ts'
import { openCriuTimeout } from '../../lib/stream/criu-timeout.ts'
import { within } from '../expect.ts'

const test = suite('stream/criu-timeout')
/** Milliseconds. */
const LIMIT = 60

/** A silence, and its end. */
function watched() {
  let tell: (reason: Fault) => void = () => {}
  let silent = false
  const fell = new Promise<Fault>((resolve) => {
    tell = resolve
  })
  const silence = openCriuTimeout(LIMIT, (reason) => {
    silent = true
    tell(reason)
  })
  return { silence, fell, isSilent: () => silent }
}

function pass(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}

test('a criu that sends nothing is reported once', async () => {
  const { silence, fell } = watched()
  const { code, message } = await within(fell)
  assert.is(code, 'TIMEOUT')
  assert.is(message, 'criu sent nothing for 0.06 s')
  silence.close()
})

test('a criu that sends something now and then, or is not waited for, is not reported', async () => {
  for (const way of ['heard', 'follow', 'during'] as const) {
    const { silence, fell, isSilent } = watched()
    const news = openCondition()
    if (way === 'follow') silence.follow(news)
    if (way === 'during') await silence.during(pass(8 * LIMIT))
    for (let time = 0; way !== 'during' && time < 60; time++) {
      await pass(LIMIT / 8)
      if (way === 'heard') silence.heard()
      else news.notify()
    }
    assert.not(isSilent(), way)
    await within(fell, way)
    silence.close()
  }
})

test('nothing is reported once it is closed', async () => {
  const { silence, isSilent } = watched()
  silence.close()
  silence.close()
  await pass(4 * LIMIT)
  assert.not(isSilent())
})

test.run()
