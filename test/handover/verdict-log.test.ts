import { spawn } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  lstatSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { snapshotId } from '../../lib/format/names.ts'
import { deliverAndForget } from '../../lib/handover/deliver-verdict.ts'
import {
  forgetVerdict,
  markLetGo,
  type PendingVerdict,
  readPendingVerdicts,
  verdictFor,
  writePendingVerdict,
} from '../../lib/handover/verdict-log.ts'
import { check } from '../../lib/kernel/fd.ts'
import { mkfifo } from '../../lib/kernel/libc.ts'
import { startTime } from '../../lib/kernel/process.ts'
import { throwsFault } from '../expect.ts'
import { eventually, temporary } from '../support/run.ts'

const test = suite('handover/verdict-log')
const id = snapshotId('web-1')
const token = Buffer.alloc(16, 7)

async function sleeper() {
  const child = spawn('sleep', ['1000'])
  const pid = child.pid as number
  const start = await eventually(() => startTime(pid), 'a start time')
  return { member: { pid, start }, end: () => new Promise((resolve) => child.once('exit', resolve).kill('SIGKILL')) }
}

test('the tasks decide: alive they are resumed, dead they are gone, while criu works nothing is known', async () => {
  const { path, remove } = temporary()
  const [criu, task] = [await sleeper(), await sleeper()]
  writePendingVerdict(path, id, token, { criu: criu.member, tasks: [task.member] }, 'let go')
  const [pending] = readPendingVerdicts(path)
  assert.ok(pending !== undefined)
  assert.is(verdictFor(pending), undefined)
  await criu.end()
  assert.is(verdictFor({ ...pending, boot: 'another' }), 'go', 'a reboot ends all')
  assert.is(verdictFor({ ...pending, tasks: [{ ...task.member, start: 1 }] }), 'go', 'the number is another one now')
  await task.end()
  assert.is(verdictFor(pending), 'go')
  remove()
})

/** A pending verdict for a task and its criu, at this stage; `again`: as another process reads it. */
async function scene(stage: PendingVerdict['stage']) {
  const { path, remove } = temporary()
  const [criu, task] = [await sleeper(), await sleeper()]
  const pending = writePendingVerdict(path, id, token, { criu: criu.member, tasks: [task.member] }, stage)
  const again = (): PendingVerdict => readPendingVerdicts(path)[0] as PendingVerdict
  return { path, remove, criu, task, pending, again }
}

test('a task that ends after it was resumed stays resumed, for the next source and after a reboot too', async () => {
  const { remove, criu, task, pending, again } = await scene('let go')
  await criu.end()
  assert.is(verdictFor(pending), 'drop')
  await task.end()
  assert.is(verdictFor(pending), 'drop')
  assert.is(verdictFor(again()), 'drop')
  assert.is(verdictFor({ ...again(), boot: 'another' }), 'drop')
  remove()
})

test('a source that was killed before it let go keeps its tasks, whatever becomes of them', async () => {
  const { remove, criu, task, again } = await scene('held')
  await task.end()
  assert.is(verdictFor(again()), undefined, 'it may still live, and let go')
  await criu.end()
  assert.is(verdictFor(again()), 'drop')
  remove()
})

test('a process that has read `held` learns of `let go`', async () => {
  const { path, remove, criu, task, pending, again } = await scene('held')
  const read = again()
  markLetGo(pending)
  await task.end()
  await criu.end()
  assert.is(verdictFor(read), 'go')
  const file = join(path, 'web-1.owed')
  const whole = readFileSync(file, 'utf8')
  assert.match(whole, /\nheld\nlet go\n$/)
  writeFileSync(file, `${whole}kept`)
  assert.is(again().stage, 'let go', 'a word without its end does not count')
  writeFileSync(file, whole.slice(0, whole.indexOf('held')))
  assert.is(again().stage, 'let go', 'what the first versions wrote')
  forgetVerdict(pending)
  throwsFault('IO', () => markLetGo({ ...pending, stage: 'held' }))
  assert.equal(readdirSync(path), [], 'half a verdict')
  remove()
})

test('what is pending lies there in one piece, for its owner only, until it is settled', async () => {
  const { path, remove } = temporary()
  const criu = { pid: process.pid, start: 1 }
  const pending = writePendingVerdict(path, id, token, { criu, tasks: [] }, 'held')
  writePendingVerdict(path, snapshotId('web-2'), token, { criu, tasks: [] }, 'held')
  assert.equal(readdirSync(path).sort(), ['web-1.owed', 'web-2.owed'])
  assert.is(statSync(join(path, 'web-1.owed')).mode & 0o777, 0o600)
  writeFileSync(join(path, 'torn.owed'), readFileSync(join(path, 'web-1.owed')).subarray(0, 20))
  writeFileSync(join(path, 'evil.owed'), '{"id":"../x","criu":{},"tasks":[],"boot":""}')
  writeFileSync(join(path, 'odd.owed'), '{"id":"x","tasks":5}')
  assert.equal(
    readPendingVerdicts(path)
      .map((pending) => pending.id)
      .sort(),
    ['web-1', 'web-2'],
  )
  forgetVerdict(pending)
  forgetVerdict(pending)
  assert.not(readdirSync(path).includes('web-1.owed'))
  throwsFault('IO', () => writePendingVerdict(join(path, 'nowhere'), id, token, { criu, tasks: [] }, 'held'))
  remove()
})

test('a pending verdict is never overwritten', () => {
  const { path, remove } = temporary()
  const criu = { pid: process.pid, start: 1 }
  writePendingVerdict(path, id, token, { criu, tasks: [] }, 'held')
  throwsFault('EXISTS', () => writePendingVerdict(path, id, Buffer.alloc(16, 8), { criu, tasks: [] }, 'held'))
  assert.is(readPendingVerdicts(path)[0]?.token, token.toString('hex'))
  assert.equal(readdirSync(path), ['web-1.owed'])
  remove()
})

test('a file at the temporary name of a new verdict is removed, and never written through', () => {
  const { path, remove } = temporary()
  const criu = { pid: process.pid, start: 1 }
  writeFileSync(join(path, 'precious'), 'x')
  for (const [name, makeStale] of [
    ['torn', () => writeFileSync(join(path, 'torn.owed.new'), 'half')],
    ['linked', () => symlinkSync('precious', join(path, 'linked.owed.new'))],
    ['dangling', () => symlinkSync('made', join(path, 'dangling.owed.new'))],
  ] as const) {
    makeStale()
    writePendingVerdict(path, snapshotId(name), token, { criu, tasks: [] }, 'held')
    assert.ok(lstatSync(join(path, `${name}.owed`)).isFile(), name)
  }
  assert.is(readFileSync(join(path, 'precious'), 'utf8'), 'x')
  assert.equal(readdirSync(path).sort(), ['dangling.owed', 'linked.owed', 'precious', 'torn.owed'])
  symlinkSync('nowhere', join(path, 'web-1.owed'))
  throwsFault('EXISTS', () => writePendingVerdict(path, id, token, { criu, tasks: [] }, 'held'))
  remove()
})

test('a file that others could have written, a link, a FIFO and a file that is too large are not read', () => {
  const { path, remove } = temporary()
  const pending = writePendingVerdict(path, id, token, { criu: { pid: process.pid, start: 1 }, tasks: [] }, 'held')
  const names = (): string[] => readPendingVerdicts(path).map((one) => one.id)
  symlinkSync('web-1.owed', join(path, 'link.owed'))
  check(mkfifo(join(path, 'fifo.owed'), 0o600), 'mkfifo')
  assert.equal(names(), ['web-1'])
  for (const mode of [0o640, 0o604, 0o620, 0o602]) {
    chmodSync(pending.path, mode)
    assert.equal(names(), [], mode.toString(8))
  }
  chmodSync(pending.path, 0o600)
  if (process.geteuid?.() === 0) {
    chownSync(pending.path, 65534, 0)
    assert.equal(names(), [])
    throwsFault('IO', () => markLetGo(pending))
    chownSync(pending.path, 0, 0)
  }
  assert.equal(names(), ['web-1'])
  truncateSync(pending.path, 2 ** 24 + 1)
  assert.equal(names(), [])
  remove()
})

test('a delivery tries again until it is told to stop', async () => {
  const { path, remove } = temporary()
  const pending = writePendingVerdict(path, id, token, { criu: { pid: process.pid, start: 1 }, tasks: [] }, 'held')
  let tries = 0
  const stop = new AbortController()
  const connect = async (): Promise<never> => {
    if (++tries === 3) stop.abort(Object.assign(new Error('enough'), { name: 'TimeoutError' }))
    const { Fault } = await import('../../lib/fault.ts')
    throw new Fault('LINK', 'nobody there')
  }
  const reason = await deliverAndForget(pending, { connect, report: () => {}, signal: stop.signal }).catch(
    (error: Error) => error,
  )
  assert.is((reason as Error).message, 'enough')
  assert.is(tries, 3)
  remove()
})

test.run()
