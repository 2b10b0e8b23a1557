import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startMemory } from '../../lib/bench/target-process.ts'
import { childrenOf } from '../../lib/kernel/process.ts'
import { rejectsFault, within } from '../expect.ts'
import { temporary } from '../support/run.ts'

const test = suite('bench/target-process')

for (const [kind, children] of [
  ['random', 0],
  ['zero', 0],
  ['text', 3],
  ['heap', 0],
] as const) {
  test(`a process with ${kind} memory and ${children} children knows that it is whole, how long it stood`, async () => {
    const { path, remove } = temporary()
    const { pid, gone, verify, kill } = await startMemory({ bytes: 4 * 2 ** 20, kind, children, folder: path })
    assert.is(childrenOf(pid).length, children)
    process.kill(pid, 'SIGSTOP')
    await new Promise((resolve) => setTimeout(resolve, 300))
    process.kill(pid, 'SIGCONT')
    const still = await verify()
    assert.ok(still >= 0.3, `${still} s`)
    kill()
    await within(gone)
    kill()
    remove()
  })
}

test('memory that is not what it was is DIGEST', async () => {
  const { path, remove } = temporary()
  const broken = join(path, 'memory.pl')
  writeFileSync(
    broken,
    'open(my $log, ">>", $ARGV[2]); $| = 1; select($log); $| = 1; print "ready\\n"; $SIG{USR1} = sub ' +
      '{ print "WRONG at 3\\n" }; sleep 1 while 1',
  )
  const { verify, kill, gone } = await startMemory({ bytes: 2 ** 20, kind: 'zero', folder: path, fixtures: path })
  const fault = await rejectsFault('DIGEST', verify())
  assert.match(fault.message, 'WRONG at 3')
  kill()
  await gone
  remove()
})

test.run()
