import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type Connection, Connections } from '../../lib/cache/connection-limit.ts'
import type { Fault } from '../../lib/fault.ts'
import { throwsFault, within } from '../expect.ts'

const test = suite('cache/connection-limit')

/** A table that notes which connection was closed, and why. */
function table(most: number, silentMs = 60_000, stillMs = 0) {
  const closed: string[] = []
  const connections = new Connections({ most, silentMs, stillMs, waitedMs: stillMs })
  const add = (name: string, origin = name, count = 1): Connection =>
    connections.add(origin, ({ code }: Fault) => void closed.push(`${name} ${code}`), count)
  return { closed, connections, add }
}

test('a silent connection is closed for a new one: the oldest of the origin that has most', () => {
  const { closed, connections, add } = table(4)
  add('honest')
  for (const name of ['a1', 'a2', 'a3']) add(name, 'a')
  assert.equal(connections.counts, { silent: 4, answered: 0 })
  add('a4', 'a')
  add('other')
  assert.equal(closed, ['a1 LIMIT', 'a2 LIMIT'])
  for (const name of ['b1', 'b2', 'b3']) add(name, 'b')
  // Where each origin has one the oldest is closed.
  assert.equal(closed.slice(2), ['a3 LIMIT', 'honest LIMIT', 'b1 LIMIT'])
  assert.equal(connections.counts, { silent: 4, answered: 0 })
})

test('connections that have sent a frame count apart; a full table refuses, or closes a still one', async () => {
  const { closed, connections, add } = table(2, 60_000, 50)
  const [one, two] = [add('one'), add('two')]
  for (const each of [one, two]) each.enter('moving')
  const three = add('three')
  assert.equal(connections.counts, { silent: 1, answered: 2 })
  throwsFault('LIMIT', () => three.enter('moving'))
  await setTimeout(60)
  two.moved(5000)
  three.enter('moving')
  assert.equal(closed, ['one TIMEOUT'])
  assert.not(connections.relieve(true))
})

test('few bytes are no progress: neither signs of life nor a first frame that trickles in', async () => {
  const { closed, add } = table(1, 60_000, 50)
  const one = add('one')
  one.enter('moving')
  const two = add('two')
  await setTimeout(60)
  for (let times = 0; times < 100; times++) one.moved(28)
  two.enter('moving')
  assert.equal(closed, ['one TIMEOUT'])
  const dripping = add('dripping')
  dripping.moved(10_000)
  add('next')
  assert.equal(closed, ['one TIMEOUT', 'dripping LIMIT'])
})

test('of those that stand still one of the busiest origin is closed; one that holds a copy never is', async () => {
  const { closed, connections, add } = table(8, 60_000, 20)
  const held = add('held', 'many')
  held.enter('holding')
  for (const name of ['lone', 'm1', 'm2']) add(name, name === 'lone' ? name : 'many').enter('waiting')
  await setTimeout(30)
  while (connections.relieve(false));
  assert.equal(closed, [], 'images are in none of them')
  while (connections.relieve(true));
  assert.equal(closed, ['m1 TIMEOUT', 'lone TIMEOUT', 'm2 TIMEOUT'])
  assert.equal(connections.counts, { silent: 0, answered: 1 })
  held.leave()
  assert.equal(connections.counts, { silent: 0, answered: 0 })
})

test('a connection that is silent or still too long is closed; its peer gets the reason', async () => {
  const closing: string[] = []
  const connections = new Connections({ most: 4, silentMs: 100 })
  const silent = new Promise<Fault>((resolve) => void connections.add('a', resolve))
  assert.match((await within(silent)).message, 'the client said nothing for 0.1 s')
  const done = new Promise<void>((resolve) => {
    const still = connections.add('b', ({ message }) => resolve(void closing.push(`closed: ${message}`)))
    still.onClose(() => void closing.push('released'))
    still.beforeClose(async ({ code }) => void closing.push(`told ${code}`))
    still.enter('moving', 50)
  })
  await within(done)
  assert.equal(closing, ['released', 'told TIMEOUT', "closed: nothing moved for 0.05 s (the cache's --timeout)"])
  assert.equal(connections.counts, { silent: 0, answered: 0 })
})

test('a peer that does not read the reason is closed all the same, and close() closes all', async () => {
  const { closed, connections, add } = table(1)
  const deaf = add('deaf')
  deaf.beforeClose(() => new Promise(() => {}))
  add('next')
  assert.equal(closed, [])
  await setTimeout(700)
  assert.equal(closed, ['deaf LIMIT'])
  connections.close({ code: 'ABORTED' } as Fault)
  assert.equal(closed, ['deaf LIMIT', 'next ABORTED'])
})

test('a striped link counts as many connections as it has', () => {
  const { closed, connections, add } = table(4)
  add('one')
  add('group', 'group', 3)
  add('two')
  assert.equal(closed, ['group LIMIT'])
  assert.equal(connections.counts, { silent: 2, answered: 0 })
})

test.run()
