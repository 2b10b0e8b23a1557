import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { HeldRestore } from '../../lib/criu/restore.ts'
import { Fault } from '../../lib/fault.ts'
import { snapshotId } from '../../lib/format/names.ts'
import { TargetHandover } from '../../lib/handover/target.ts'
import { defer } from '../../lib/stream/wait.ts'
import { rejectsFault, throwsFault, turns } from '../expect.ts'

const test = suite('handover/target')
const id = snapshotId('web-1')

/** A hand-over whose watcher and restore only write down what is called. */
function scene() {
  const calls: string[] = []
  const handover = new TargetHandover(id, (outcome) => calls.push(`settled: ${outcome}`))
  handover.watcher = {
    ready: () => calls.push('ready'),
    refused: (reason) => calls.push(`refused: ${reason.message}`),
    settled: () => calls.push('over'),
  }
  const runs = defer<boolean>()
  const copy: HeldRestore = { open: () => calls.push('open'), shut: () => calls.push('shut'), runs: runs.promise }
  return { handover, calls, copy, runs }
}

test('held, then go: the copy runs, and the images are nobody’s any more', async () => {
  const { handover, calls, copy, runs } = scene()
  handover.restore()
  handover.restored(copy)
  assert.is(handover.state, 'holding')
  const fate = handover.decide('go')
  await turns()
  assert.equal(calls, ['ready', 'open'])
  runs.resolve(true)
  assert.is(await fate, 'running')
  assert.equal(calls, ['ready', 'open', 'settled: running'])
  assert.is(await handover.decide('go'), 'running', 'a verdict that comes twice')
  assert.is(await handover.decide('drop'), 'running', 'what runs is not dropped')
})

test('go before anything is restored: kept, and a copy that comes later runs at once', async () => {
  const { handover, calls, copy, runs } = scene()
  assert.is(await handover.decide('go'), 'stored')
  assert.is(handover.state, 'owning')
  handover.restore()
  handover.restored(copy)
  runs.resolve(true)
  await turns()
  assert.equal(calls, ['open', 'settled: running'])
})

test('go, and criu fails at its end: the images stay, another restore may try', async () => {
  const { handover, calls, copy, runs } = scene()
  handover.restore()
  handover.restored(copy)
  runs.resolve(false)
  await rejectsFault('CRIU', handover.decide('go'))
  assert.is(handover.state, 'owning')
  assert.not(calls.some((call) => call.startsWith('settled')))
  handover.restore()
  assert.is(handover.state, 'reviving')
})

for (const [verdict, outcome] of [
  ['drop', 'dropped'],
  ['copy', 'copied'],
] as const) {
  test(`held, then ${verdict}: the copy goes before the images do`, async () => {
    const { handover, calls, copy, runs } = scene()
    handover.restore()
    handover.restored(copy)
    const fate = handover.decide(verdict)
    await turns()
    assert.equal(calls, ['ready', 'shut'])
    runs.resolve(false)
    assert.is(await fate, 'dropped')
    assert.equal(calls, ['ready', 'shut', `settled: ${outcome}`])
  })

  test(`${verdict} while criu restores: the copy is dropped when it is there, or when criu fails`, async () => {
    for (const end of ['restored', 'failed'] as const) {
      const { handover, calls, copy, runs } = scene()
      handover.restore()
      assert.is(await handover.decide(verdict), 'dropped')
      assert.equal(calls, [])
      runs.resolve(false)
      if (end === 'restored') handover.restored(copy)
      else handover.restoreFailed(new Fault('CRIU', 'no'))
      await turns()
      assert.equal(calls, end === 'restored' ? ['shut', `settled: ${outcome}`] : [`settled: ${outcome}`])
    }
  })
}

test('a verdict before any restore: drop takes the images, copy leaves them', async () => {
  const dropped = scene()
  assert.is(await dropped.handover.decide('drop'), 'dropped')
  assert.equal(dropped.calls, ['settled: dropped'])
  const copied = scene()
  assert.is(await copied.handover.decide('copy'), 'stored')
  assert.equal(copied.calls, ['settled: copied'])
  throwsFault('EXISTS', () => copied.handover.restore())
})

test('criu fails before it holds: the source hears why, and another restore may try', async () => {
  const { handover, calls } = scene()
  handover.restore()
  throwsFault('EXISTS', () => handover.restore(), 'a second restore of the same snapshot')
  handover.restoreFailed(new Fault('CRIU', 'File exists'))
  assert.equal(calls, ['refused: File exists'])
  handover.restore()
  assert.is(handover.state, 'restoring')
})

test('a holder out of reach holds on, and the verdict can be given again', async () => {
  const { handover, copy, runs } = scene()
  handover.restore()
  handover.restored(copy)
  runs.reject(new Fault('LINK', 'out of reach'))
  await rejectsFault('LINK', handover.decide('go'))
  assert.is(handover.state, 'holding')
})

test.run()
