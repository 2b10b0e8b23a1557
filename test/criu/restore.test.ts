import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Gate } from '../../lib/criu/action-script.ts'
import { followRestore } from '../../lib/criu/restore.ts'
import { childrenOf, isRunning, openProcess, type Process } from '../../lib/kernel/process.ts'
import { defer } from '../../lib/stream/wait.ts'
import { eventually } from '../support/run.ts'

const test = suite('criu/restore')

/** A process that plays criu, with one task below it, at a gate that only says what it is told. */
async function scene() {
  const criu = spawn('sh', ['-c', 'sleep 1000 & wait'])
  const pid = criu.pid as number
  const task = await eventually(() => childrenOf(pid)[0], 'a task')
  const [resumed, noop] = [defer<void>(), (): void => {}]
  const gate: Gate = {
    ...{ held: Promise.resolve(task), resumed: resumed.promise },
    ...{ label: noop, open: noop, shut: noop, remove: noop },
  }
  const end = async (): Promise<void> => {
    const ended = once(criu, 'exit')
    criu.kill('SIGKILL')
    await ended
  }
  return { criu: openProcess(pid) as Process, task, gate, resumed, end }
}

test('a criu that is killed before its tasks run: they would wait for ever, and are killed', async () => {
  const { criu, task, gate, end } = await scene()
  const restore = followRestore(gate, criu)
  restore.noteTasks()
  restore.noteTasks()
  await end()
  assert.is(await restore.runs, false)
  await eventually(() => !isRunning(task) || undefined, 'the end of the task')
})

test('tasks that run are left alone when criu ends; so are tasks that nobody has noted', async () => {
  for (const noted of [true, false]) {
    const { criu, task, gate, resumed, end } = await scene()
    const restore = followRestore(gate, criu)
    if (noted) restore.noteTasks()
    if (noted) resumed.resolve()
    else await end()
    assert.is(await restore.runs, noted)
    if (noted) await end()
    assert.ok(isRunning(task))
    process.kill(task, 'SIGKILL')
  }
})

test.run()
