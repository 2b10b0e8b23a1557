import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { clearGates, closedGate, type Moment, writeScript } from '../../lib/role/gate.ts'
import { within } from '../expect.ts'
import { type Running, root, run, start, temporary } from '../support/run.ts'

const test = suite('gate')

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
    const stranger = await run(script, [], env(moment))
    assert.is(stranger.code, 1)
    assert.match(stranger.stderr, new RegExp(`^${moment}: criu-ferry does not know this criu`))
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

/** A process that holds a gate for us, and is killed. */
async function killedHolder(moment: Moment) {
  const { path, remove } = temporary()
  const code = `import('./lib/role/gate.ts').then(({ closedGate, writeScript }) => {
    closedGate(${JSON.stringify(path)}, ${process.pid}, '${moment}')
    console.error(writeScript(${JSON.stringify(path)}, '${moment}'))
    setTimeout(() => {}, 60_000)
  })`
  const holder = start(process.execPath, ['--import', 'tsx', '-e', code], { cwd: root })
  const [script = ''] = await holder.says(new RegExp(`/.*${moment}`))
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

test('a holder that is killed: a restored copy waits on, until somebody decides', async () => {
  const { path, running, remove } = await killedHolder('post-restore')
  assert.is(await soon(running.ended), 'waiting')
  await run('mv', [`${path}/${process.pid}.post-restore.lock`, `${path}/${process.pid}.post-restore.go`])
  assert.is((await running.ended).code, 0)
  remove()
})

test.run()
