import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  commandLine,
  descendants,
  isDying,
  lockMarks,
  memoryOfTree,
  openProcess,
  startTime,
  tracedBy,
} from '../../lib/kernel/process.ts'
import { reasonOf, waits, within } from '../expect.ts'
import { endStarted, noTracer, startDying, startOrphan, startSleeper, startTracer } from '../support/dying.ts'
import { eventually } from '../support/run.ts'
import { openFds } from './fds.ts'

const test = suite('kernel/process')

test.after.each(endStarted)

test('the end of a process that is not ours is seen, also before its parent has heard of it', async () => {
  const { pid, parent } = await startOrphan()
  const child = openProcess(pid)
  assert.ok(child !== undefined)
  assert.ok(await waits(child.ended))
  assert.type(startTime(pid), 'number')
  assert.equal(descendants(parent), [pid])
  child.kill()
  await within(child.ended)
  assert.is(startTime(pid), undefined, 'a zombie has ended')
  child.close()
  child.close()
})

test('the memory of a tree: its own, not that of files, and its children’s', async () => {
  const hog = (child: string): string => `${child} $x = "x" x (16 << 20); print "ready\\n"; sleep 1000`
  const tree = spawn('perl', ['-e', `$| = 1; ${hog('fork;')}`], { stdio: ['ignore', 'pipe', 'ignore'] })
  const said: string[] = []
  tree.stdout.on('data', (text: Buffer) => said.push(text.toString()))
  await eventually(() => said.join('').split('ready').length > 2 || undefined, 'two processes')
  const [child = 0] = descendants(tree.pid as number)
  const [alone, both] = [memoryOfTree(child), memoryOfTree(tree.pid as number)]
  assert.ok(alone > 16 * 2 ** 20 && alone < 80 * 2 ** 20, `${alone}`)
  assert.ok(both > alone + 16 * 2 ** 20, `${both} for both, ${alone} for one`)
  assert.is(memoryOfTree(0), 0)
  for (const pid of [child, tree.pid as number]) process.kill(pid, 'SIGKILL')
})

test('a child of any thread is a child', async () => {
  const thread = `const { pid } = require('child_process').spawn('sleep', ['1000']); console.log(pid)`
  const program = `new (require('worker_threads').Worker)(${JSON.stringify(thread)}, { eval: true })`
  const parent = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'ignore'] })
  const [said] = (await once(parent.stdout, 'data')) as [Buffer]
  const child = Number(said)
  assert.equal(descendants(parent.pid as number), [child])
  for (const pid of [child, parent.pid as number]) process.kill(pid, 'SIGKILL')
})

test('a process that is forgotten is waited for no more', async () => {
  const own = openProcess(process.pid)
  own?.close()
  assert.instance(await reasonOf(own?.ended ?? Promise.resolve()), Error)
})

test('there is no process 0, nor one beyond the largest number', () => {
  for (const pid of [0, -1, 2 ** 22 + 1]) {
    assert.is(openProcess(pid), undefined)
    assert.is(startTime(pid), undefined)
    assert.equal(commandLine(pid), [''])
    assert.equal(descendants(pid), [])
  }
})

test('a number and its start time name a process', async () => {
  const [one, two] = [startSleeper(), startSleeper()]
  await eventually(() => commandLine(two.pid)[0] === 'sleep' || undefined, 'the start')
  assert.equal(commandLine(one.pid), ['sleep', '1000', ''])
  assert.is(startTime(one.pid), startTime(one.pid))
  assert.ok((startTime(one.pid) as number) > 0)
})

for (const how of ['kill', 'exit'] as const) {
  test(`a task that is not gone yet is dying (${how})`, async () => {
    const task = await startDying()
    const opened = openProcess(task.pid)
    assert.not(isDying(task.pid))
    task[how]()
    await eventually(() => isDying(task.pid) || undefined, 'its dying')
    assert.type(startTime(task.pid), 'number', 'it still has its name')
    assert.ok(await waits(opened?.ended ?? Promise.resolve()))
    await task.release()
    await within(opened?.ended ?? Promise.reject(new Error('it was never there')))
    assert.is(startTime(task.pid), undefined)
    assert.not(isDying(task.pid))
  })
}

test('a task that was killed, and whose tracer lets it go no further, is dying', async () => {
  if (noTracer !== undefined) return void console.log(`skipped: ${noTracer}`)
  const sleeper = startSleeper()
  const { pid } = sleeper
  const exited = once(sleeper, 'exit')
  const exitIsTraced = 0x40
  const tracer = await startTracer(pid, exitIsTraced)
  assert.not(isDying(pid))
  sleeper.kill('SIGKILL')
  await eventually(() => isDying(pid) || undefined, 'its dying')
  assert.type(startTime(pid), 'number')
  await tracer.end()
  await within(exited)
})

test('the marks of changed pages are one caller’s, for the whole tree, until he gives them back', async () => {
  const parent = spawn('sh', ['-c', 'sleep 1000 & echo; wait'], { stdio: ['ignore', 'pipe', 'ignore'] })
  const pid = parent.pid as number
  await once(parent.stdout, 'data')
  const [child = 0] = descendants(pid)
  const fds = openFds()
  try {
    const release = lockMarks(pid)
    assert.ok(release)
    assert.is(lockMarks(pid), undefined)
    assert.is(lockMarks(child), undefined, 'of a task below it')
    release?.()
    const below = lockMarks(child)
    assert.ok(below)
    assert.is(lockMarks(pid), undefined, 'of a task above it')
    below?.()
    lockMarks(pid)?.()
    assert.is(openFds(), fds)
  } finally {
    for (const task of [child, pid]) process.kill(task, 'SIGKILL')
  }
})

test('who traces whom', async () => {
  assert.equal(tracedBy(process.pid), [])
  if (noTracer !== undefined) return void console.log(`skipped: ${noTracer}`)
  const sleeper = startSleeper()
  const tracer = await startTracer(sleeper.pid)
  assert.equal(tracedBy(tracer.pid), [sleeper.pid])
  assert.equal(tracedBy(0), [], 'nobody is traced by nobody')
  await tracer.end()
})

test.run()
