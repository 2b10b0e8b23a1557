import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { snapshotId } from '../../lib/format/names.ts'
import { deliverAndForget } from '../../lib/handover/deliver-verdict.ts'
import { writePendingVerdict } from '../../lib/handover/verdict-log.ts'
import { startTime } from '../../lib/kernel/process.ts'
import { connectEndpoint } from '../../lib/stream/endpoint.ts'
import { rejectsFault } from '../expect.ts'
import { start, temporary } from '../support/run.ts'

const test = suite('handover/deliver-verdict')
const token = Buffer.alloc(16, 7)

test('a target that does not know the snapshot: a drop is delivered, a go stays on disk and is reported', async () => {
  const { path, remove } = temporary()
  const cache = start('cache', ['--port', '0', '-D', join(path, 'target')])
  const [, port] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
  const target = { kind: 'tcp', host: '127.0.0.1', port: Number(port), credentials: undefined } as const
  const options = {
    connect: (signal: AbortSignal) => connectEndpoint(target, 5000, signal),
    report: () => {},
    signal: new AbortController().signal,
  }
  const gone = { pid: process.pid, start: 1 }
  const alive = { pid: process.pid, start: startTime(process.pid) ?? 0 }

  const kept = writePendingVerdict(path, snapshotId('kept'), token, { criu: gone, tasks: [alive] }, 'let go')
  assert.equal(await deliverAndForget(kept, options), { verdict: 'drop', fate: 'dropped' })
  assert.not(existsSync(join(path, 'kept.owed')))

  const lost = writePendingVerdict(path, snapshotId('lost'), token, { criu: gone, tasks: [gone] }, 'let go')
  const fault = await rejectsFault('MISSING', deliverAndForget(lost, options))
  assert.match(fault.message, /gone from here, and the target does not know snapshot lost/)
  assert.match(String(fault.hint), new RegExp(`rm ${path}/lost\\.owed$`))
  assert.ok(existsSync(join(path, 'lost.owed')))
  await cache.stop()
  remove()
})

test('a signal leaves the verdict on disk', async () => {
  const { path, remove } = temporary()
  const gone = { pid: process.pid, start: 1 }
  const pending = writePendingVerdict(path, snapshotId('web-1'), token, { criu: gone, tasks: [gone] }, 'let go')
  const stop = new AbortController()
  const connect = (): Promise<never> => {
    stop.abort(new Error('enough'))
    return Promise.reject(stop.signal.reason)
  }
  const outcome = await deliverAndForget(pending, { connect, report: () => {}, signal: stop.signal }).catch(String)
  assert.is(outcome, 'Error: enough')
  assert.ok(existsSync(join(path, 'web-1.owed')))
  remove()
})

test.run()
