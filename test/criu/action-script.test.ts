import { spawnSync } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { clearGates, closedGate, type Moment, writeScript } from '../../lib/criu/action-script.ts'
import { throwsFault, within } from '../expect.ts'
import { type Running, root, run, start, temporary } from '../support/run.ts'

const test = suite('criu/action-script')

/** `waiting` if it has not ended after a while. */
function soon<Result>(ended: Promise<Result>): Promise<Result | 'waiting'> {
  return Promise.race([ended, new Promise<'waiting'>((resolve) => setTimeout(resolve, 300, 'waiting'))])
}

const env = (action: string) => ({ env: { CRTOOLS_SCRIPT_ACTION: action } })

/** Runs a script as criu does: as its child. We are the criu. */
function action(script: string, name: string): Running {
  return start(script, [], env(name))
}

for (const moment of ['post-dump', 'post-restore'] as const satisfies readonly Moment[]) {
  test(`the script waits at ${moment}, says so, and succeeds when the gate opens`, async () => {
    const { path, remove } = temporary()
    const script = writeScript(path, moment)
    const gate = closedGate(path, process.pid, moment)
    const running = action(script, moment)
    await within(gate.held)
    assert.is(await soon(running.ended), 'waiting')
    gate.open()
    gate.shut()
    assert.is((await running.ended).code, 0)
    gate.remove()
    assert.equal(readdirSync(path), [moment])
    remove()
  })

  test(`the script fails at ${moment} when the gate is shut, or taken away, or was never there`, async () => {
    const { path, remove } = temporary()
    const script = writeScript(path, moment)
    for (const end of ['shut', 'remove'] as const) {
      const gate = closedGate(path, process.pid, moment)
      const running = action(script, moment)
      await within(gate.held)
      gate[end]()
      gate.open()
      assert.is((await running.ended).code, 1, end)
      gate.remove()
    }
    const unknown = await run(script, [], env(moment))
    assert.is(unknown.code, 1)
    assert.match(unknown.stderr, new RegExp(`^${moment}: criu-ferry does not know this criu`))
    remove()
  })

  test(`other moments pass ${moment} at once`, async () => {
    const { path, remove } = temporary()
    const script = writeScript(path, moment)
    const gate = closedGate(path, process.pid, moment)
    for (const other of ['pre-stream', 'pre-dump', 'network-lock', 'pre-resume']) {
      assert.is((await run(script, [], env(other))).code, 0)
    }
    assert.is(await soon(gate.held), 'waiting')
    gate.remove()
    remove()
  })
}

test('before a dump criu waits where we wait for it, and says what it will dump; else it goes on', async () => {
  const { path, remove } = temporary()
  const script = writeScript(path, 'post-dump')
  const before = env('pre-dump')
  assert.is((await run(script, [], before)).code, 0)
  for (const [end, code] of [
    ['open', 0],
    ['shut', 1],
  ] as const) {
    const gate = closedGate(path, process.pid, 'pre-dump')
    const running = start(script, [], { env: { ...before.env, CRTOOLS_INIT_PID: '4711' } })
    assert.is(await within(gate.held), 4711)
    assert.is(await soon(running.ended), 'waiting')
    gate[end]()
    assert.is((await running.ended).code, code, end)
    gate.remove()
  }
  assert.equal(readdirSync(path), ['post-dump'])
  remove()
})

test('gates whose criu is gone are cleared away, others stay', () => {
  const { path, remove } = temporary()
  const gate = closedGate(path, process.pid, 'post-dump')
  const nobody = 2 ** 22 + 1
  for (const name of ['pre-dump.go', 'post-dump.held', 'post-dump.lock'])
    writeFileSync(join(path, `${nobody}.${name}`), '')
  for (const name of ['post-dump', 'notes', `${nobody}.post-restore.lock`]) writeFileSync(join(path, name), '')
  clearGates(path)
  assert.equal(
    readdirSync(path).sort(),
    [
      `${process.pid}.post-dump.held`,
      `${process.pid}.post-dump.lock`,
      `${nobody}.post-restore.lock`,
      'notes',
      'post-dump',
    ].sort(),
  )
  gate.remove()
  remove()
})

test('the tasks run: post-resume tells us', async () => {
  const { path, remove } = temporary()
  const script = writeScript(path, 'post-restore')
  const gate = closedGate(path, process.pid, 'post-restore')
  const running = action(script, 'post-restore')
  await within(gate.held)
  gate.open()
  await running.ended
  assert.is(await soon(gate.resumed), 'waiting')
  assert.is((await run(script, [], env('post-resume'))).code, 0)
  await within(gate.resumed)
  gate.remove()
  remove()
})

/** Sets a limit of this process as it is while `act` runs, and gives it back. */
function limited(name: 'nofile' | 'fsize', soft: string, act: () => void): void {
  const line = name === 'nofile' ? 'Max open files' : 'Max file size'
  const [, was = ''] = new RegExp(`^${line}\\s+(\\S+)`, 'm').exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
  const set = (value: string): void => {
    assert.is(spawnSync('prlimit', ['--pid', String(process.pid), `--${name}=${value}:`]).status, 0, value)
  }
  set(soft)
  try {
    act()
  } finally {
    set(was)
  }
}

/** Lets `act` have so many descriptors and no more. */
function withDescriptors(count: number, act: () => void): void {
  const taken: number[] = []
  try {
    for (;;) taken.push(openSync('/dev/null', 'r'))
  } catch {}
  try {
    for (const fd of taken.splice(0, count)) closeSync(fd)
    act()
  } finally {
    for (const fd of taken) closeSync(fd)
  }
}

test('a gate is not seen before its FIFO has a reader: a gate that cannot be opened leaves nothing', () => {
  const { path, remove } = temporary()
  const lock = 1
  limited('nofile', '256', () => {
    // Between the FIFO and its reader: there a script would say its word to nobody.
    withDescriptors(lock, () => throwsFault('IO', () => closedGate(path, process.pid, 'post-dump')))
    withDescriptors(0, () => throwsFault('IO', () => closedGate(path, process.pid, 'post-dump')))
  })
  assert.equal(readdirSync(path), [])
  closedGate(path, process.pid, 'post-dump').remove()
  remove()
})

test('a script that looks for its gate all the time is never lost', async () => {
  const { path, remove } = temporary()
  const eager = `for $pid (1 .. $ARGV[1]) {
    1 until open HELD, '+<', "$ARGV[0]/$pid.post-dump.held";
    syswrite HELD, "held $pid\\n"; close HELD
  }`
  const gates = 300
  const scripts = start('perl', ['-e', eager, path, String(gates)])
  for (let pid = 1; pid <= gates; pid++) {
    const gate = closedGate(path, pid, 'post-dump')
    assert.is(await within(gate.held), pid)
    gate.remove()
  }
  assert.is((await scripts.ended).code, 0)
  remove()
})

test('a script that cannot be written leaves the one that is there, whole', () => {
  const { path, remove } = temporary()
  const script = writeScript(path, 'post-dump')
  const whole = readFileSync(script, 'utf8')
  limited('fsize', '0', () => throwsFault('IO', () => writeScript(path, 'post-dump')))
  assert.equal(readdirSync(path), ['post-dump'])
  assert.is(readFileSync(script, 'utf8'), whole)
  remove()
})

/** Seconds that a script waits for a holder in these tests. */
const SOON_S = 0.3

test('a dump waits for a holder that is there, however long it takes', async () => {
  const { path, remove } = temporary()
  const script = writeScript(path, 'post-dump', SOON_S)
  const gate = closedGate(path, process.pid, 'post-dump')
  const running = action(script, 'post-dump')
  await within(gate.held)
  await new Promise((resolve) => setTimeout(resolve, 6 * SOON_S * 1000))
  assert.is(running.child.exitCode, null)
  gate.open()
  assert.is((await running.ended).code, 0)
  gate.remove()
  assert.equal(readdirSync(path), ['post-dump'])
  remove()
})

for (const moment of ['pre-dump', 'post-dump'] as const) {
  test(`a dump at ${moment} waits no longer for a holder that is stopped: it fails, and its tasks run on`, async () => {
    const { holder, script, remove } = await anotherHolder(moment, SOON_S)
    holder.child.kill('SIGSTOP')
    const ran = await within(action(script, moment).ended)
    assert.is(ran.code, 1)
    assert.match(ran.stderr, `${moment}: criu-ferry holds this criu and does not answer`)
    await holder.stop('SIGKILL')
    remove()
  })
}

test('a gate whose directory is gone is removed without a word', () => {
  const { path, remove } = temporary()
  const gate = closedGate(path, process.pid, 'post-restore')
  remove()
  gate.remove()
})

test('a second client with the same number does not disturb the first', async () => {
  const { path, remove } = temporary()
  const script = writeScript(path, 'post-dump')
  const first = closedGate(path, process.pid, 'post-dump')
  const second = closedGate(path, process.pid, 'post-dump')
  second.shut()
  second.remove()
  const running = action(script, 'post-dump')
  await within(first.held)
  first.open()
  assert.is((await running.ended).code, 0)
  first.remove()
  remove()
})

/** A process that holds a gate for us. */
async function anotherHolder(moment: Moment, answerS: number, label = '') {
  const { path, remove } = temporary()
  const scriptOf = moment === 'pre-dump' ? 'post-dump' : moment
  const code = `import('./lib/criu/action-script.ts').then(({ closedGate, writeScript }) => {
    closedGate(${JSON.stringify(path)}, ${process.pid}, '${moment}').label('${label}')
    console.error(writeScript(${JSON.stringify(path)}, '${scriptOf}', ${answerS}))
    setTimeout(() => {}, 60_000)
  })`
  const holder = start(process.execPath, ['--import', 'tsx', '-e', code], { cwd: root })
  const [script = ''] = await holder.says(new RegExp(`/.*${scriptOf}`))
  return { holder, script, path, remove }
}

async function killedHolder(moment: Moment, label?: string) {
  const { holder, script, path, remove } = await anotherHolder(moment, 60, label)
  const running = action(script, moment)
  assert.is(await soon(running.ended), 'waiting')
  await holder.stop('SIGKILL')
  return { path, running, remove }
}

test('a holder that is killed: a dump is let go for nobody', async () => {
  const { running, remove } = await killedHolder('post-dump')
  assert.is((await running.ended).code, 1)
  remove()
})

test('a holder that is killed: a restored copy that nobody would recover is removed', async () => {
  const { running, remove } = await killedHolder('post-restore')
  assert.is((await running.ended).code, 1)
  remove()
})

test('a holder that is killed: a restored copy with a label waits on for the next holder', async () => {
  const { path, running, remove } = await killedHolder('post-restore', 'web-1')
  assert.is(await soon(running.ended), 'waiting')
  await run('mv', [`${path}/${process.pid}.post-restore.lock`, `${path}/${process.pid}.post-restore.go`])
  assert.is((await running.ended).code, 0)
  remove()
})

test.run()
