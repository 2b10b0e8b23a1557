import { readdirSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { closedGate } from '../../lib/role/gate.ts'
import { root, run, start, temporary } from '../support/run.ts'

const test = suite('gate')

const postDump = { env: { CRTOOLS_SCRIPT_ACTION: 'post-dump' } }

/** `waiting` if it has not ended after a while. */
function soon<Result>(ended: Promise<Result>): Promise<Result | 'waiting'> {
  return Promise.race([ended, new Promise<'waiting'>((resolve) => setTimeout(resolve, 300, 'waiting'))])
}

test('the script waits at post-dump until go, and then succeeds', async () => {
  const { path, remove } = temporary()
  const gate = closedGate(path)
  const script = start(gate.script, [], postDump)
  assert.is(await soon(script.ended), 'waiting')
  gate.go()
  assert.is((await script.ended).code, 0)
  assert.is((await run(gate.script, [], postDump)).code, 0)
  gate.close()
  remove()
})

test('a gate that closes without go makes it fail', async () => {
  const { path, remove } = temporary()
  const gate = closedGate(path)
  const script = start(gate.script, [], postDump)
  assert.is(await soon(script.ended), 'waiting')
  gate.close()
  gate.go()
  assert.is((await script.ended).code, 1)
  assert.not(readdirSync(path).includes('go'))
  remove()
})

test('other moments of a dump pass at once', async () => {
  const { path, remove } = temporary()
  const gate = closedGate(path)
  for (const action of ['pre-stream', 'pre-dump', 'network-lock', 'post-restore']) {
    assert.is((await run(gate.script, [], { env: { CRTOOLS_SCRIPT_ACTION: action } })).code, 0)
  }
  gate.close()
  remove()
})

test('a holder that is killed opens the gate for nobody', async () => {
  const { path, remove } = temporary()
  const code = `import('./lib/role/gate.ts').then(({ closedGate }) => {
    console.error(closedGate(${JSON.stringify(path)}).script)
    setTimeout(() => {}, 60_000)
  })`
  const holder = start(process.execPath, ['--import', 'tsx', '-e', code], { cwd: root })
  const [script = ''] = await holder.says(/\/.*post-dump/)
  const waiting = start(script, [], postDump)
  assert.is(await soon(waiting.ended), 'waiting')
  await holder.stop('SIGKILL')
  assert.is((await waiting.ended).code, 1)
  remove()
})

test.run()
