import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Connections } from '../../lib/cache/connection-limit.ts'
import { openIdleTimer } from '../../lib/cache/idle.ts'

const test = suite('cache/idle')

test('after many connections and none left the daemon is idle: reported after a while, and once', async () => {
  let calm = 0
  const quiet = openIdleTimer(() => calm++, { least: 100, ms: 50 })
  const come = (count: number): void => {
    for (let times = 0; times < count; times++) quiet.came()
  }
  const leave = (count: number): void => {
    for (let times = 0; times < count; times++) quiet.left()
  }
  come(99)
  leave(99)
  await setTimeout(100)
  assert.is(calm, 0, 'few')
  come(2)
  leave(1)
  await setTimeout(100)
  assert.is(calm, 0, 'one is there')
  leave(1)
  come(1)
  await setTimeout(100)
  assert.is(calm, 0, 'another has come')
  leave(1)
  await setTimeout(100)
  come(2)
  leave(2)
  await setTimeout(100)
  assert.is(calm, 1)
})

test('connections that leave or are closed are counted as gone', () => {
  let present = 0
  const quiet = { came: () => void present++, left: () => void present-- }
  const connections = new Connections({ most: 2, silentMs: 60_000, quiet })
  const [first] = [0, 1, 2].map(() => connections.add('a', () => {}))
  assert.is(present, 2)
  first?.leave()
  assert.is(present, 2, 'it was closed before')
  connections.close({ code: 'ABORTED' } as never)
  assert.is(present, 0)
})

test.run()
