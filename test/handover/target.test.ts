import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { HeldRestore } from '../../lib/criu/restore.ts'
import { Fault } from '../../lib/fault.ts'
import { snapshotId } from '../../lib/format/names.ts'
import { openTargetHandover } from '../../lib/handover/target.ts'
import { defer } from '../../lib/stream/wait.ts'
import { rejectsFault, throwsFault, turns } from '../expect.ts'

const test = suite('handover/target')
const id = snapshotId('web-1')

/** An arrival with a watcher and a restore that are only written down. */
function scene() {
  const said: string[] = []
  const arrival = openTargetHandover(id, (outcome) => said.push(`settled: ${outcome}`))
  arrival.watcher = {
    ready: () => said.push('ready'),
    refused: (reason) => said.push(`refused: ${reason.message}`),
    settled: () => said.push('over'),
  }
  const runs = defer<boolean>()
  const copy: HeldRestore = { open: () => said.push('open'), shut: () => said.push('shut'), runs: runs.promise }
  return { arrival, said, copy, runs }
}

test('held, then go: the copy runs, and the images are nobody’s any more', async () => {
  const { arrival, said, copy, runs } = scene()
  arrival.restore()
  arrival.restored(copy)
  assert.is(arrival.state, 'holding')
  const fate = arrival.decide('go')
  await turns()
  assert.equal(said, ['ready', 'open'])
  runs.resolve(true)
  assert.is(await fate, 'running')
  assert.equal(said, ['ready', 'open', 'settled: running'])
  assert.is(await arrival.decide('go'), 'running', 'a verdict that comes twice')
  assert.is(await arrival.decide('drop'), 'running', 'what runs is not dropped')
})

test('go before anything is restored: kept, and a copy that comes later runs at once', async () => {
  const { arrival, said, copy, runs } = scene()
  assert.is(await arrival.decide('go'), 'stored')
  assert.is(arrival.state, 'owning')
  arrival.restore()
  arrival.restored(copy)
  runs.resolve(true)
  await turns()
  assert.equal(said, ['open', 'settled: running'])
})

test('go, and criu fails at its end: the images stay, another restore may try', async () => {
  const { arrival, said, copy, runs } = scene()
  arrival.restore()
  arrival.restored(copy)
  runs.resolve(false)
  await rejectsFault('CRIU', arrival.decide('go'))
  assert.is(arrival.state, 'owning')
  assert.not(said.some((line) => line.startsWith('settled')))
  arrival.restore()
  assert.is(arrival.state, 'reviving')
})

for (const [verdict, outcome] of [
  ['drop', 'dropped'],
  ['copy', 'copied'],
] as const) {
  test(`held, then ${verdict}: the copy goes before the images do`, async () => {
    const { arrival, said, copy, runs } = scene()
    arrival.restore()
    arrival.restored(copy)
    const fate = arrival.decide(verdict)
    await turns()
    assert.equal(said, ['ready', 'shut'])
    runs.resolve(false)
    assert.is(await fate, 'dropped')
    assert.equal(said, ['ready', 'shut', `settled: ${outcome}`])
  })

  test(`${verdict} while criu restores: the copy is dropped when it is there, or when criu fails`, async () => {
    for (const end of ['restored', 'failed'] as const) {
      const { arrival, said, copy, runs } = scene()
      arrival.restore()
      assert.is(await arrival.decide(verdict), 'dropped')
      assert.equal(said, [])
      runs.resolve(false)
      if (end === 'restored') arrival.restored(copy)
      else arrival.restoreFailed(new Fault('CRIU', 'no'))
      await turns()
      assert.equal(said, end === 'restored' ? ['shut', `settled: ${outcome}`] : [`settled: ${outcome}`])
    }
  })
}

test('a verdict before any restore: drop takes the images, copy leaves them', async () => {
  const dropped = scene()
  assert.is(await dropped.arrival.decide('drop'), 'dropped')
  assert.equal(dropped.said, ['settled: dropped'])
  const copied = scene()
  assert.is(await copied.arrival.decide('copy'), 'stored')
  assert.equal(copied.said, ['settled: copied'])
  throwsFault('EXISTS', () => copied.arrival.restore())
})

test('criu fails before it holds: the source hears why, and another restore may try', async () => {
  const { arrival, said } = scene()
  arrival.restore()
  throwsFault('EXISTS', () => arrival.restore(), 'a second restore of the same snapshot')
  arrival.restoreFailed(new Fault('CRIU', 'File exists'))
  assert.equal(said, ['refused: File exists'])
  arrival.restore()
  assert.is(arrival.state, 'restoring')
})

test('a holder out of reach holds on, and the verdict can be given again', async () => {
  const { arrival, copy, runs } = scene()
  arrival.restore()
  arrival.restored(copy)
  runs.reject(new Fault('LINK', 'out of reach'))
  await rejectsFault('LINK', arrival.decide('go'))
  assert.is(arrival.state, 'holding')
})

test.run()
