import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type TaskId, treeFate, watchTree } from '../../lib/criu/process-tree.ts'
import { isDying, startTime } from '../../lib/kernel/process.ts'
import { waits, within } from '../expect.ts'
import { endStarted, noTracer, startDying, startOrphan, startSleeper, startTracer } from '../support/dying.ts'
import { eventually } from '../support/run.ts'

const test = suite('criu/process-tree')

test.after.each(endStarted)

async function member(pid: number): Promise<TaskId> {
  return { pid, start: await eventually(() => startTime(pid), 'a start time') }
}

const gone: TaskId = { pid: 2 ** 22 + 1, start: 1 }

test('a tree that is dying is neither alive nor dead until it is gone', async () => {
  const task = await startDying()
  const tree = { criu: gone, tasks: [await member(task.pid)] }
  assert.is(treeFate(tree), 'alive')
  task.kill()
  await eventually(() => isDying(task.pid) || undefined, 'its dying')
  assert.is(treeFate(tree), undefined)
  await task.release()
  assert.is(treeFate(tree), 'dead')
})

test('a root that lives does not speak for a task that is dying: criu kills them all', async () => {
  const [root, task] = [startSleeper(), await startDying()]
  const tree = { criu: gone, tasks: [await member(root.pid), await member(task.pid)] }
  task.kill()
  await eventually(() => isDying(task.pid) || undefined, 'its dying')
  assert.is(treeFate(tree), undefined)
  await task.release()
  assert.is(treeFate(tree), 'alive')
})

test('a zombie is dead', async () => {
  const { pid } = await startOrphan()
  const tree = { criu: gone, tasks: [await member(pid)] }
  assert.is(treeFate(tree), 'alive')
  process.kill(pid, 'SIGKILL')
  await eventually(() => treeFate(tree) === 'dead' || undefined, 'its end')
})

test('a criu that ends while its task is dying has killed it', async () => {
  if (noTracer !== undefined) return void console.log(`skipped: ${noTracer}`)
  const task = await startDying()
  const criu = await startTracer(task.pid)
  const tree = watchTree(criu.pid)
  assert.equal(
    tree.tasks.map(({ pid }) => pid),
    [task.pid],
  )
  task.kill()
  await eventually(() => isDying(task.pid) || undefined, 'its dying')
  await criu.end()
  assert.ok(await waits(tree.fate))
  await task.release()
  assert.is(await within(tree.fate), 'dead')
  tree.close()
})

test('a criu that ends and has not killed leaves its task alive', async () => {
  if (noTracer !== undefined) return void console.log(`skipped: ${noTracer}`)
  const sleeper = startSleeper()
  const criu = await startTracer(sleeper.pid)
  const tree = watchTree(criu.pid)
  await criu.end()
  assert.is(await within(tree.fate), 'alive')
  tree.close()
})

test.run()
