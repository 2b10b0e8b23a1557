/** In a pid namespace of its own, as the first process. */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { root, run } from '../support/run.ts'

const test = suite('kernel/child-reaper')

/** Leaves an orphan that ends, and has a child of its own that ends when Node has not looked yet. */
const first = `
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { ownChild, reapOrphans } from '${join(root, 'lib', 'kernel', 'child-reaper.ts')}'
const state = (pid) => {
  try {
    return readFileSync('/proc/' + pid + '/stat', 'utf8').split(' ')[2]
  } catch {
    return 'gone'
  }
}
if (process.argv[1] === 'reap') reapOrphans()
const child = spawn('sh', ['-c', 'exit 7'])
const exited = once(child, 'exit')
child.once('exit', ownChild(child.pid).ended)
while (state(child.pid) !== 'Z');
process.emit('SIGCHLD')
const orphan = Number(spawnSync('sh', ['-c', 'sleep 0.1 >/dev/null & echo $!'], { encoding: 'utf8' }).stdout)
for (let time = 0; time < 50 && !/Z|gone/.test(state(orphan)); time++) await setTimeout(20)
for (let time = 0; time < 25 && state(orphan) !== 'gone'; time++) await setTimeout(20)
console.log(process.pid, (await Promise.race([exited, setTimeout(2000, ['lost'])]))[0], state(orphan))
process.exit(0)
`

async function seen(word: string): Promise<string> {
  const node = ['--import', 'tsx', '--input-type=module', '-e', first, word]
  const namespace = ['--pid', '--fork', '--mount-proc', '--kill-child']
  const ran = await run('unshare', [...namespace, process.execPath, ...node], { cwd: root })
  assert.is(ran.code, 0, ran.stderr)
  return ran.stdout.toString().trim()
}

if (process.geteuid?.() !== 0) console.log('skipped: a namespace needs root')
else {
  test('the end of an orphan is noted, and that of our own child is left to Node', async () => {
    assert.is(await seen('reap'), '1 7 gone')
  })

  test('without that an orphan keeps its number', async () => {
    assert.is(await seen('leave'), '1 7 Z')
  })
}

test.run()
