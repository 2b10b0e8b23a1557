import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { snapshotId } from '../../lib/format/names.ts'
import { lockMarks } from '../../lib/kernel/process.ts'
import { ProxyChains } from '../../lib/precopy/chains.ts'
import type { PreCopyChain } from '../../lib/precopy/send-round.ts'
import { throwsFault } from '../expect.ts'
import { eventually } from '../support/run.ts'

const test = suite('precopy/chains')
const opened: ProxyChains[] = []
/** They wait for the ends of trees, and this process for them. */
test.after(() => {
  for (const chains of opened) chains.close()
})

/** The chains of a proxy, and a tree that can end. */
function scene() {
  const over: PreCopyChain[] = []
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' })
  const [tree, chains] = [child.pid ?? 0, new ProxyChains((chain) => over.push(chain))]
  opened.push(chains)
  let number = 0
  const take = (before: string | undefined = 'r1') => chains.take(tree, before, () => snapshotId(`s${++number}`))
  /** A round of the tree that is sealed. */
  const round = (before?: string): PreCopyChain => {
    const { chain, keep } = take(before)
    keep('r1')
    return chain
  }
  const end = async (): Promise<void> => {
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  }
  return { over, tree, chains, take, round, end }
}

test('a round that is sealed is gone on with, one that failed is not', async () => {
  const { over, take, round, end } = scene()
  const chain = round()
  assert.is(round(), chain)
  assert.is(take().chain, chain)
  const next = take().chain
  assert.is.not(next, chain)
  assert.is.not(next.token, chain.token)
  assert.equal(over, [], 'the cache has dropped it with the round that failed')
  await end()
})

test('a dump that names another dump before it begins anew', async () => {
  const { over, round, end } = scene()
  const chain = round()
  assert.is.not(round('r0'), chain)
  assert.equal(over, [chain])
  await end()
})

test('two at once: the one that began last is continued, whichever ends first', async () => {
  const { over, take, end } = scene()
  const slow = take()
  const fast = take()
  fast.keep('r1')
  slow.keep('r1')
  assert.equal(over, [slow.chain], 'it knows nothing of what the other one cleared')
  assert.is(take().chain, fast.chain)
  await end()
})

test('a dump of another kind ends it, also in the middle of a round', async () => {
  const { over, tree, chains, take, round, end } = scene()
  const first = round()
  chains.breakOff(tree)
  assert.equal(over, [first])
  const second = take()
  chains.breakOff(tree)
  second.keep('r1')
  assert.equal(over, [first, second.chain])
  assert.is.not(take().chain, second.chain)
  await end()
})

test('a dump of a part of the tree, of one that it is a part of, or of one that is not known ends it', async () => {
  for (const other of [process.pid, undefined]) {
    const { over, chains, round, end } = scene()
    const chain = round()
    chains.breakOff(other)
    assert.equal(over, [chain])
    await end()
  }
  const { over, tree, chains, round, end } = scene()
  const whole = chains.take(process.pid, undefined, () => snapshotId('whole'))
  whole.keep('r1')
  chains.breakOff(tree)
  assert.equal(over, [whole.chain])
  const part = round()
  chains.take(process.pid, undefined, () => snapshotId('whole-2'))
  assert.equal(over, [whole.chain, part])
  chains.breakOff(1 << 21)
  await end()
})

test('marks that a pre-copy needs are not taken from it, and those of a chain are not its', async () => {
  const { over, tree, chains, take, round, end } = scene()
  const marks = (): boolean => {
    const release = lockMarks(tree)
    release?.()
    return release !== undefined
  }
  const unlock = lockMarks(tree)
  throwsFault('EXISTS', () => take())
  unlock?.()
  const first = take()
  assert.not(marks(), 'while it is dumped')
  first.end()
  assert.ok(marks(), 'it has failed')
  const chain = round()
  assert.not(marks(), 'between two rounds')
  assert.is(take().chain, chain)
  chains.breakOff(tree)
  assert.ok(marks())
  const slow = take()
  const fast = take()
  slow.end()
  assert.not(marks(), 'another one works')
  fast.keep('r1')
  fast.end()
  assert.not(marks(), 'it was kept')
  assert.equal(over, [])
  await end()
})

test('it ends with its tree, and with the proxy', async () => {
  const { over, chains, round, end } = scene()
  const chain = round()
  await end()
  await eventually(() => (over.length > 0 ? true : undefined), 'the end')
  assert.equal(over, [chain])
  chains.close()
  assert.is(over.length, 1)
  const other = scene()
  const kept = other.round()
  other.chains.close()
  assert.equal(other.over, [kept])
  await other.end()
})

test.run()
